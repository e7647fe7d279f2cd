//! Starts QEMU with Debian's cloud kernel and an initramfs made here: busybox, the virtio-net
//! modules, an address. Talks QMP.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

const MODULES: [&str; 8] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
];

const INIT: &str = "#!/bin/busybox sh
for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci failover net_failover virtio_net
do /bin/busybox insmod /$module.ko
done
/bin/busybox ip link set eth0 up
/bin/busybox ip addr add 10.0.0.2/24 dev eth0
echo guest is up
while :; do /bin/busybox sleep 1000; done
";

/// What this machine lacks for the test, if anything.
pub fn missing() -> Option<&'static str> {
    let found = |name: &str| {
        std::env::var_os("PATH").is_some_and(|path| {
            std::env::split_paths(&path).any(|folder| folder.join(name).exists())
        })
    };
    if !found("qemu-system-x86_64") {
        Some("qemu-system-x86_64")
    } else if kernel_version().is_none() {
        Some("linux-image-cloud-amd64")
    } else if !Path::new("/bin/busybox").exists() {
        Some("busybox")
    } else {
        None
    }
}

/// Where the guest's kernel and modules are: the machine's own, or those that `make deps` unpacked
/// into the cache.
fn kernel_root() -> PathBuf {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let cache = variable("PLOVER_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("plover")))
        .or_else(|| Some(variable("HOME")?.join(".cache/plover")))
        .unwrap_or_default();
    let has_kernel = fs::read_dir("/boot").is_ok_and(|names| {
        names
            .flatten()
            .any(|name| name.file_name().to_string_lossy().ends_with("cloud-amd64"))
    });
    if has_kernel {
        PathBuf::from("/")
    } else {
        cache.join("guest-kernel")
    }
}

/// The newest cloud kernel with its modules.
fn kernel_version() -> Option<String> {
    let names = fs::read_dir(kernel_root().join("boot"))
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names
        .filter_map(|name| Some(name.strip_prefix("vmlinuz-")?.to_owned()))
        .filter(|version| version.ends_with("cloud-amd64"))
        .filter(|version| module(version, MODULES[7]).exists())
        .max()
}

fn module(version: &str, path: &str) -> PathBuf {
    kernel_root()
        .join("lib/modules")
        .join(version)
        .join("kernel")
        .join(path)
}

/// A file of a cpio archive (newc).
fn cpio_entry(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let fields = [
        0,
        mode,
        0,
        0,
        1,
        0,
        content.len() as u32,
        0,
        0,
        0,
        0,
        name.len() as u32 + 1,
        0,
    ];
    archive.extend(b"070701");
    fields
        .iter()
        .for_each(|field| archive.extend(format!("{field:08x}").bytes()));
    archive.extend(name.bytes().chain([0]));
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

fn initramfs(version: &str) -> Vec<u8> {
    const FOLDER: u32 = 0o040_755;
    const PROGRAM: u32 = 0o100_755;
    let mut archive = Vec::new();
    cpio_entry(&mut archive, "bin", FOLDER, &[]);
    cpio_entry(
        &mut archive,
        "bin/busybox",
        PROGRAM,
        &fs::read("/bin/busybox").unwrap(),
    );
    for library in libraries("/bin/busybox") {
        let mut folder = String::new();
        for part in library.parent().unwrap().iter().skip(1) {
            folder = format!(
                "{folder}{}{}",
                if folder.is_empty() { "" } else { "/" },
                part.display()
            );
            cpio_entry(&mut archive, &folder, FOLDER, &[]);
        }
        let name = library.strip_prefix("/").unwrap().display().to_string();
        cpio_entry(&mut archive, &name, PROGRAM, &fs::read(&library).unwrap());
    }
    for path in MODULES {
        let name = Path::new(path).file_name().unwrap().to_str().unwrap();
        cpio_entry(
            &mut archive,
            name,
            0o100_644,
            &fs::read(module(version, path)).unwrap(),
        );
    }
    cpio_entry(&mut archive, "init", PROGRAM, INIT.as_bytes());
    cpio_entry(&mut archive, "TRAILER!!!", 0, &[]);
    archive
}

/// Shared libraries that a program is loaded with; none if it is static.
fn libraries(program: &str) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

pub struct Qemu {
    process: Child,
    console: PathBuf,
    qmp: BufReader<UnixStream>,
    memory: PathBuf,
}

impl Qemu {
    pub fn start(folder: &Path, nic: &Path) -> Self {
        let version = kernel_version().unwrap();
        let initrd = folder.join("initrd");
        fs::write(&initrd, initramfs(&version)).unwrap();
        let console = folder.join("console");
        let qmp = folder.join("qmp");
        let memory = PathBuf::from(format!("/dev/shm/plover-smoke-{}", std::process::id()));
        let mac = GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":");
        let object = format!(
            "memory-backend-file,id=mem,size=256M,mem-path={},share=on",
            memory.display()
        );
        let process = Command::new("qemu-system-x86_64")
            .args([
                "-accel",
                "tcg",
                "-machine",
                "q35,memory-backend=mem",
                "-cpu",
                "max",
            ])
            .args(["-m", "256", "-object", &object])
            .args(["-chardev", &format!("socket,id=c0,path={}", nic.display())])
            .args(["-netdev", "vhost-user,id=n0,chardev=c0"])
            .args([
                "-device",
                &format!("virtio-net-pci,netdev=n0,vectors=0,romfile=,mac={mac}"),
            ])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-serial", &format!("file:{}", console.display())])
            .args([
                "-qmp",
                &format!("unix:{},server=on,wait=off", qmp.display()),
            ])
            .arg("-kernel")
            .arg(kernel_root().join(format!("boot/vmlinuz-{version}")))
            .args(["-initrd", &initrd.display().to_string()])
            .args(["-append", "console=ttyS0 quiet panic=-1"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let qmp = connect(&qmp);
        let mut qemu = Self {
            process,
            console,
            qmp: BufReader::new(qmp),
            memory,
        };
        qemu.read_message();
        qemu.command("qmp_capabilities", &json!({}));
        qemu
    }

    pub fn wait_for_console(&mut self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let console = fs::read(&self.console).unwrap_or_default();
            let console = String::from_utf8_lossy(&console);
            if console.contains(text) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "no {text:?} on the console:\n{console}"
            );
            assert_eq!(
                self.process.try_wait().unwrap(),
                None,
                "QEMU ended:\n{console}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs a command that must succeed.
    pub fn command(&mut self, name: &str, arguments: &Value) -> Value {
        self.try_command(name, arguments)
            .unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn try_command(&mut self, name: &str, arguments: &Value) -> Result<Value, Value> {
        let message = json!({ "execute": name, "arguments": arguments });
        writeln!(self.qmp.get_mut(), "{message}").unwrap();
        loop {
            let mut answer = self.read_message();
            if answer.get("error").is_some() {
                return Err(answer["error"].take());
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
        }
    }

    fn read_message(&mut self) -> Value {
        let mut line = String::new();
        assert_ne!(self.qmp.read_line(&mut line).unwrap(), 0, "QEMU closed QMP");
        serde_json::from_str(&line).unwrap()
    }

    /// Saves everything but RAM, as a sync does. Refused by QEMU if the card stood in the way.
    pub fn save_state_without_memory(&mut self) {
        let capability = json!({ "capability": "x-ignore-shared", "state": true });
        self.command(
            "migrate-set-capabilities",
            &json!({ "capabilities": [capability] }),
        );
        self.command("migrate", &json!({ "uri": "exec:cat >/dev/null" }));
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let status = self.command("query-migrate", &json!({}))["status"].take();
            if status == "completed" {
                return;
            }
            assert!(
                status != "failed" && Instant::now() < deadline,
                "migration: {status}"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets the VM run again; right after a save it may not be ready for that.
    pub fn resume(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while let Err(error) = self.try_command("cont", &json!({})) {
            assert!(Instant::now() < deadline, "cont: {error}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_file(&self.memory);
    }
}

fn connect(socket: &Path) -> UnixStream {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => {
                stream
                    .set_read_timeout(Some(Duration::from_secs(30)))
                    .unwrap();
                return stream;
            }
            Err(error) => assert!(Instant::now() < deadline, "no QMP: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
