//! A VM on a card, started by hand as the README says: a guest of two vCPUs with two queue pairs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use ch_integration::demo::cpio::CpioWriter;
use ch_integration::demo::guest::{GUEST_CMDLINE, GUEST_MEMORY_MIB, GuestImage, cache_dir};
use ch_integration::demo::{DemoOptions, DemoVmm, Service};
use serde_json::Value;

use super::card::CARD_MAC;

/// Pairs of queues, and vCPUs.
pub const PAIRS: u16 = 2;

const CHANNELS: &str = include_str!("../../guest/channels.c");

/// Why Cloud Hypervisor can't run here.
#[must_use]
pub fn cloud_hypervisor_lack() -> Option<String> {
    if cloud_hypervisor().is_none() {
        return Some("no cloud-hypervisor".to_owned());
    }
    if !Path::new("/dev/kvm").exists() {
        return Some("no KVM for cloud-hypervisor".to_owned());
    }
    // Where KVM is software: whether a guest for it is named.
    let guest = DemoOptions::default().chosen_guest(DemoVmm::CloudHypervisor);
    guest.err().map(|error| format!("{error:#}"))
}

/// `PLOVER_CLOUD_HYPERVISOR`, else in `$PATH`.
fn cloud_hypervisor() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders).map(|folder| folder.join("cloud-hypervisor"));
    let named = std::env::var_os("PLOVER_CLOUD_HYPERVISOR").map(PathBuf::from);
    named
        .map_or_else(|| { found }.find(|path| path.is_file()), Some)
        .filter(|path| path.is_file())
}

/// Packets of each queue pair in a node's status, to the guest and from it.
pub fn pair_counts(status: &Value) -> Result<Vec<(u64, u64)>> {
    let pairs = status.pointer("/status/pairs").and_then(Value::as_array);
    let count = |pair: &Value, name: &str| pair[name].as_u64().unwrap_or_default();
    let counts = |pair| (count(pair, "delivered"), count(pair, "taken"));
    let pairs = pairs.context("the status has no pairs")?;
    Ok(pairs.iter().map(counts).collect())
}

/// What a VM boots.
#[derive(Clone, Debug)]
pub struct Image {
    kernel: PathBuf,
    initrd: PathBuf,
    cmdline: String,
    memory_mib: u64,
    /// What it serves.
    pub service: Service,
}

impl Image {
    /// The guest that this VMM runs here, with all of its queue pairs in use. `folder`: for what
    /// has to be made.
    pub fn of(vmm: DemoVmm, folder: &Path) -> Result<Self> {
        if vmm == DemoVmm::Qemu {
            let image = GuestImage::prepare(&cache_dir())?;
            return Ok(Self {
                kernel: image.kernel,
                initrd: image.initrd,
                cmdline: GUEST_CMDLINE.to_owned(),
                memory_mib: GUEST_MEMORY_MIB,
                service: Service::Redis,
            });
        }
        let guest = DemoOptions::default().chosen_guest(vmm)?;
        let mut image = Self {
            kernel: guest.image.kernel,
            initrd: guest.image.initrd,
            cmdline: guest.cmdline,
            memory_mib: guest.memory_mib,
            service: guest.service,
        };
        if image.service == Service::Counter {
            image.use_all_pairs(folder)?;
        }
        Ok(image)
    }

    /// Settings of a node's `[vmm]` and `[guest]` for this guest.
    #[must_use]
    pub fn settings(&self) -> [String; 6] {
        [
            format!("vmm.kernel={:?}", self.kernel),
            format!("vmm.memory_mib={}", self.memory_mib),
            format!("vmm.initrd={:?}", self.initrd),
            format!("vmm.cmdline={:?}", self.cmdline),
            format!("vmm.vcpus={PAIRS}"),
            format!("guest.queue_pairs={PAIRS}"),
        ]
    }

    /// The kernels that software KVMs run know one CPU, and turn one pair on by themselves.
    fn use_all_pairs(&mut self, folder: &Path) -> Result<()> {
        let (source, program) = (folder.join("channels.c"), folder.join("channels"));
        fs::write(&source, CHANNELS)?;
        let flags = [
            "-O1",
            "-static",
            "-nostdlib",
            "-ffreestanding",
            "-fno-stack-protector",
        ];
        let built = Command::new("cc")
            .args(flags)
            .arg("-o")
            .args([&program, &source])
            .status()
            .context("run cc")?;
        ensure!(built.success(), "channels.c was not built: {built}");
        // Archives may follow one another.
        let mut archive = fs::read(&self.initrd).context("read the guest's initramfs")?;
        archive.resize(archive.len().next_multiple_of(4), 0);
        let mut more = CpioWriter::new(archive);
        more.file("channels", 0o755, &fs::read(&program)?)?;
        self.initrd = folder.join("initrd");
        fs::write(&self.initrd, more.finish()?)?;
        self.cmdline += " rdinit=/channels";
        Ok(())
    }
}

/// A running VMM; killed when dropped.
pub struct Vm {
    process: Child,
    folder: PathBuf,
}

impl Vm {
    /// Starts a VMM on the card at `socket`, or one that listens there itself. Logs go to `folder`.
    pub fn start(
        vmm: DemoVmm,
        image: &Image,
        socket: &Path,
        listens: bool,
        folder: &Path,
    ) -> Result<Self> {
        let mut command = match vmm {
            DemoVmm::Qemu => qemu(image, socket, listens, folder),
            DemoVmm::CloudHypervisor => cloud_hypervisor_on(image, socket, listens, folder)?,
        };
        let log = fs::File::create(folder.join("vmm.log"))?;
        let process = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start the VMM")?;
        Ok(Self {
            process,
            folder: folder.to_owned(),
        })
    }

    /// Fails, with what it said, if the VMM has ended.
    pub fn check(&mut self) -> Result<()> {
        let ended = self.process.try_wait()?;
        ensure!(ended.is_none(), "the VMM ended: {ended:?}\n{}", self.log());
        Ok(())
    }

    /// What VMM and guest said.
    #[must_use]
    pub fn log(&self) -> String {
        let read = |name| fs::read(self.folder.join(name)).unwrap_or_default();
        let all = [read("vmm.log"), read("serial.log")].concat();
        String::from_utf8_lossy(&all).into_owned()
    }

    /// SIGKILL.
    pub fn kill(mut self) -> Result<()> {
        self.check()?;
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("the VMM and its guest said:\n{}", self.log());
        }
    }
}

fn qemu(image: &Image, socket: &Path, listens: bool, folder: &Path) -> Command {
    let memory = image.memory_mib;
    let accel =
        if ch_integration::config::Accel::Auto.resolve() == ch_integration::config::Accel::Kvm {
            ["-accel", "kvm", "-cpu", "host"]
        } else {
            ["-accel", "tcg", "-cpu", "max"]
        };
    let side = if listens {
        "server=on,wait=on"
    } else {
        "reconnect=1"
    };
    let mut command = Command::new("qemu-system-x86_64");
    command.args(accel);
    command.args([
        "-machine",
        "q35,memory-backend=mem",
        "-smp",
        &PAIRS.to_string(),
    ]);
    command.args(["-m", &format!("{memory}M"), "-object"]);
    command.arg(format!(
        "memory-backend-memfd,id=mem,size={memory}M,share=on"
    ));
    command.args([
        "-chardev",
        &format!("socket,id=card,path={},{side}", socket.display()),
    ]);
    command.args([
        "-netdev",
        &format!("vhost-user,id=net0,chardev=card,queues={PAIRS}"),
    ]);
    // Without KVM, QEMU 7.2 crashes with MSI-X on a vhost-user card.
    let device = "virtio-net-pci,netdev=net0,mq=on,vectors=0,romfile=,mac=";
    command.args(["-device", &format!("{device}{CARD_MAC}")]);
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-serial",
    ]);
    command.arg(format!("file:{}", folder.join("serial.log").display()));
    command.arg("-kernel").arg(&image.kernel);
    command.arg("-initrd").arg(&image.initrd);
    command.args(["-append", &image.cmdline]);
    command
}

fn cloud_hypervisor_on(
    image: &Image,
    socket: &Path,
    listens: bool,
    folder: &Path,
) -> Result<Command> {
    let mut command = Command::new(cloud_hypervisor().context("no cloud-hypervisor")?);
    if let Some(library) = std::env::var_os("PLOVER_VMM_PRELOAD") {
        command.env("LD_PRELOAD", library);
    }
    let (queues, side) = (2 * PAIRS, if listens { ",vhost_mode=server" } else { "" });
    command.args(["--cpus", &format!("boot={PAIRS},max={PAIRS}"), "--memory"]);
    command.arg(format!("size={}M,shared=on", image.memory_mib));
    command.arg("--net").arg(format!(
        "vhost_user=true,socket={},mac={CARD_MAC},num_queues={queues},queue_size=256{side}",
        socket.display()
    ));
    command.arg("--serial");
    command.arg(format!("file={}", folder.join("serial.log").display()));
    command
        .args(["--console", "off", "--kernel"])
        .arg(&image.kernel);
    command.arg("--initramfs").arg(&image.initrd);
    command.args(["--cmdline", &image.cmdline]);
    Ok(command)
}
