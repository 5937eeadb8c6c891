//! What is damaged on purpose, and what is said of it.

use std::ops::ControlFlow;

use inside::{Attributes, Error, FileKind, FileSystem, Kind};

/// Looks at everything, within bounds, whatever it is; errors end what they are in. Gives how many calls failed.
pub fn look_at_all(fs: &dyn FileSystem) -> usize {
    let mut errors = 0;
    let mut left = 2000;
    let mut directories = vec![(fs.root(), 0)];
    while let Some((directory, depth)) = directories.pop() {
        let mut found = Vec::new();
        errors += usize::from(
            fs.list(directory, 0, &mut |entry| {
                found.push((entry.name.to_vec(), entry.id));
                if found.len() < 500 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })
            .is_err(),
        );
        errors += usize::from(fs.parent(directory).is_err());
        for (name, id) in found {
            left -= 1;
            if left < 0 {
                return errors;
            }
            errors += usize::from(fs.lookup(directory, &name).is_err());
            errors += usize::from(fs.xattrs(id).is_err());
            match fs.attributes(id) {
                Err(_) => errors += 1,
                Ok(Attributes { kind: FileKind::Directory, .. }) if depth < 8 => directories.push((id, depth + 1)),
                Ok(Attributes { kind: FileKind::File, size, .. }) => {
                    for from in [0, size / 2, size.saturating_sub(1)] {
                        errors += usize::from(fs.extents(id, from, 100).is_err());
                    }
                }
                Ok(_) => {}
            }
        }
    }
    errors
}

/// The kind of an error that has to be one.
pub fn error<T>(result: Result<T, Error>) -> Kind {
    match result {
        Ok(_) => panic!("this must not succeed"),
        Err(error) => {
            println!("{error}");
            error.kind()
        }
    }
}

/// Numbers that look random, the same ones each time.
#[derive(Debug)]
pub struct Random(
    /// Which ones; not 0.
    pub u64,
);

impl Random {
    /// One below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    /// So many bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.below(256).to_le_bytes()[0]).collect()
    }
}
