//! A mount that is shared by NFS or Samba: who reads it from elsewhere gets the disk at the point in time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::oracle;
use pullfs_tests::ports::free_port;
use pullfs_tests::process::{Finished, Running, ok, run_within, wait_until};
use pullfs_tests::tools::{tool, unpacked};

/// From a server's start to its answer, and for what it keeps for a while.
const LIMIT: Duration = Duration::from_secs(30);

/// Gets a file of the mount, by its path there.
type Get = Box<dyn Fn(&str, &Path) -> Finished>;

/// A server, and how a client gets what it gives out.
struct Share {
    _server: Running,
    get: Get,
}

impl Share {
    /// A server that is there as soon as `status.json` can be had.
    fn start(command: &Command, dir: &Path, get: impl Fn(&str, &Path) -> Finished + 'static) -> Self {
        let mut server = Running::start(command, &dir.join("log"));
        let status = dir.join("status.json");
        wait_until("a server that answers", LIMIT, || {
            server.check();
            get("status.json", &status).code == Some(0)
        });
        Self { _server: server, get: Box::new(get) }
    }

    /// nfs-ganesha, which opens by handle, and libnfs.
    fn nfs(mount: &Mount, dir: &Path) -> Self {
        let (server, vfs) = (unpacked("nfs-ganesha"), unpacked("nfs-ganesha-vfs"));
        let (config, port) = (dir.join("ganesha.conf"), free_port());
        let text = format!(
            "NFS_CORE_PARAM {{ NFS_Port = {port}; NFS_Protocols = 4; Bind_addr = 127.0.0.1; Enable_NLM = false;\n\
             Enable_RQUOTA = false; Plugins_Dir = {}; }}\n\
             NFSV4 {{ Graceless = true; RecoveryRoot = {}; Only_Numeric_Owners = true; }}\n\
             NFS_KRB5 {{ Active_krb5 = false; }}\n\
             EXPORT {{ Export_Id = 1; Path = {}; Pseudo = /vm; Access_Type = RO; Squash = none; SecType = sys;\n\
             Attr_Expiration_Time = 0; Filesystem_Id = 1.1; FSAL {{ Name = VFS; }} }}\n",
            vfs.join("usr/lib/x86_64-linux-gnu/ganesha").display(),
            dir.display(),
            mount.mnt().display(),
        );
        fs::write(&config, text).expect("a configuration");
        let mut command = Command::new(server.join("usr/bin/ganesha.nfsd"));
        command.args(["-F", "-L", "STDERR", "-f"]).arg(&config).arg("-p").arg(dir.join("pid"));
        command.env("LD_LIBRARY_PATH", server.join("usr/lib/ganesha"));
        Self::start(&command, dir, move |file, to| {
            let url = format!("nfs://127.0.0.1/vm/{file}?version=4&nfsport={port}");
            run_within(tool("nfs-cp").arg(url).arg(to), LIMIT)
        })
    }

    /// Samba, which opens by path, and its client.
    fn samba(mount: &Mount, dir: &Path) -> Self {
        let (config, port) = (dir.join("smb.conf"), free_port());
        let own = |name: &str| {
            fs::create_dir_all(dir.join(name)).expect("a directory");
            dir.join(name).display().to_string()
        };
        let text = format!(
            "[global]\nsmb ports = {port}\nbind interfaces only = yes\ninterfaces = 127.0.0.1\n\
             private dir = {0}\nstate directory = {0}\ncache directory = {0}\nlock directory = {0}\n\
             pid directory = {1}\nncalrpc dir = {1}/ncalrpc\nlog file = {1}/log\n\
             map to guest = bad user\nguest account = root\ndisable spoolss = yes\nload printers = no\n\
             [vm]\npath = {2}\nread only = yes\nguest ok = yes\n",
            own("state"),
            own("run"),
            mount.mnt().display(),
        );
        fs::write(&config, text).expect("a configuration");
        let mut command = Command::new(unpacked("samba").join("usr/sbin/smbd"));
        command.args(["-F", "--debug-stdout", "-s"]).arg(&config);
        Self::start(&command, dir, move |file, to| {
            let get = format!("get {} {}", file.replace('/', "\\"), to.display());
            let mut client = tool("smbclient");
            client.args(["-N", "-p", &port.to_string(), "-s"]).arg(&config).args(["//127.0.0.1/vm", "-c", &get]);
            run_within(&mut client, LIMIT)
        })
    }
}

/// Gets disks of one point in time and of the next.
fn gets_the_disk(flavor: Flavor, share: fn(&Mount, &Path) -> Share) {
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", 16 * MIB).filled(&[(MIB, 8 * MIB)])).start();
    let right = machine.copy("vda", "right");
    let mount = Mount::of(&machine);
    let dir = machine.dir().join("share");
    fs::create_dir(&dir).expect("a directory");
    let share = share(&mount, &dir);
    let out: PathBuf = dir.join("out");
    let get = |file: &str| {
        let _ = fs::remove_file(&out);
        // A handle must do when the kernel has forgotten all of it.
        fs::write("/proc/sys/vm/drop_caches", "2").expect("to drop caches, as root");
        (share.get)(file, &out)
    };
    assert_eq!(mount.state(), "none", "sharing it starts nothing");
    get("current/vda/disk.raw").success();
    oracle::same(&out, &right);
    machine.write("vda", 2 * MIB, MIB, 0x4d);
    get("current/vda/disk.raw").success();
    oracle::same(&out, &right);
    get("current/vda/disk.qcow2").success();
    ok(tool("qemu-img").args(["compare", "-q", "-f", "qcow2", "-F", "raw"]).args([&out, &right]));

    mount.command(&["release"]).success();
    let right = machine.copy("vda", "changed");
    // A server that knew the old one may first have to see that it is gone.
    wait_until("the disk at the next point in time", LIMIT, || get("current/vda/disk.raw").code == Some(0));
    oracle::same(&out, &right);
    drop(share);
    assert!(mount.unmount().success());
}

on!(an_nfs_server_gives_out_the_disk: new = New);
fn an_nfs_server_gives_out_the_disk(flavor: Flavor) {
    gets_the_disk(flavor, Share::nfs);
}

on!(samba_gives_out_the_disk: new = New);
fn samba_gives_out_the_disk(flavor: Flavor) {
    gets_the_disk(flavor, Share::samba);
}
