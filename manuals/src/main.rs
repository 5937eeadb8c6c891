//! `pullfs-manuals OUT`: writes manual pages and shell completions below the directory OUT, as `make install` wants them.
//!
//! ```text
//! ctl/src/args.rs, the definitions that pullfs parses with ─▶ commands ─▶ man1/pullfs.1, pullfs-COMMAND.1
//!                                                        └──────────────▶ bash/, zsh/, fish/
//! docs/tree.md, docs/mount.md ─────────────────────────────▶ document ──▶ man5/pullfs-tree.5, man8/mount.pullfs.8
//! ```
//! A program of its own, because the daemon has no need of any of it.

#[path = "../../ctl/src/args.rs"]
mod args;
mod commands;
mod document;

use std::fs::{create_dir_all, write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_complete::Shell;

use crate::document::Page;

/// Who a page comes from.
const SOURCE: &str = concat!("pullfs ", env!("CARGO_PKG_VERSION"));

/// A date would say when the program was built, which helps nobody. An empty word has to be quoted for roff.
const NO_DATE: &str = "\"\"";

/// The pages that are documents as well.
const DOCUMENTS: [(Page, &str); 4] = [
    (
        Page { name: "pullfs-tree", section: "5", summary: "the files of a mounted machine" },
        include_str!("../../docs/tree.md"),
    ),
    (
        Page {
            name: "mount.pullfs",
            section: "8",
            summary: "mount a machine's backups by mount(8), fstab and systemd",
        },
        include_str!("../../docs/mount.md"),
    ),
    (
        Page { name: "pullfs-status", section: "5", summary: "what a mounted machine's status.json tells" },
        include_str!("../../docs/status.md"),
    ),
    (
        Page { name: "pullfs-config", section: "5", summary: "where mount options are set, and who decides" },
        include_str!("../../docs/config.md"),
    ),
];

/// Where a shell looks for completions is up to `make install`; under which name, up to the shell.
const SHELLS: [(&str, Shell); 3] =
    [("bash/pullfs", Shell::Bash), ("zsh/_pullfs", Shell::Zsh), ("fish/pullfs.fish", Shell::Fish)];

fn main() -> anyhow::Result<()> {
    let out = std::env::args_os().nth(1).map(PathBuf::from).context("usage: pullfs-manuals OUT")?;
    for (name, page) in commands::pages(args::Cli::command())? {
        put(&out.join("man1").join(name), &page)?;
    }
    for (page, markdown) in DOCUMENTS {
        let path = format!("man{0}/{1}.{0}", page.section, page.name);
        put(&out.join(path), page.render(markdown).as_bytes())?;
    }
    for (path, shell) in SHELLS {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut shown(), "pullfs", &mut script);
        put(&out.join(path), &script)?;
    }
    Ok(())
}

/// `pullfs` without the commands that it starts for itself: bash would offer them.
fn shown() -> Command {
    let commands = args::Cli::command();
    let shown = commands.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    Command::new("pullfs").version(env!("CARGO_PKG_VERSION")).subcommands(shown)
}

fn put(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    create_dir_all(dir).and_then(|()| write(path, content)).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use pullfs_fs::options::table::{TABLE, live_names};

    use super::*;

    #[test]
    fn the_document_has_the_mount_options_as_help_has_them() {
        let row = |cell: &str| cell.replace('|', "\\|");
        let rows = TABLE.map(|option| format!("| `{}` | {} |", row(option.usage), row(option.text)));
        let (_, section) = DOCUMENTS[1].1.split_once("\n## Mount options\n").expect("the section");
        let documented: Vec<&str> = section.lines().filter(|line| line.starts_with("| `")).collect();
        assert_eq!(documented, rows, "docs/mount.md wants these lines:\n{}", rows.join("\n"));
    }

    #[test]
    fn the_document_names_the_options_that_can_be_changed() {
        let (_, section) = DOCUMENTS[1].1.split_once("\n## Changing options while mounted\n").expect("the section");
        let sentence = section.split("can be changed").next().unwrap_or_default();
        let named: Vec<&str> = sentence.split('`').skip(1).step_by(2).collect();
        assert_eq!(named, live_names().collect::<Vec<_>>());
    }

    #[test]
    fn each_shell_is_told_of_each_command_and_option() {
        for (path, shell) in SHELLS {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut shown(), "pullfs", &mut script);
            let script = String::from_utf8(script).unwrap();
            for word in ["checkpoint", "release", "quiesce", "foreground"] {
                assert!(script.contains(word), "{path}: {word}");
            }
            assert!(!script.contains("guardian"), "{path} offers what is not for people");
        }
    }
}
