//! A guest that counts on its serial line, and what tests of a driver look at from outside.

#![allow(dead_code, reason = "no test uses all of it")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ch_integration::config::VmmConfig;
use ch_integration::vmm::{Launched, Vmm, VmmKind};

/// The guest's init: counts, ten times a second, until the kernel command line says otherwise.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
for word in $(/bin/busybox cat /proc/cmdline); do
  case $word in stop_at=*|stop_how=*) eval "$word" ;; esac
done
n=0
while :; do
  echo "count $n"
  [ "$n" = "$stop_at" ] && /bin/busybox "$stop_how" -f
  n=$((n + 1))
  WAIT
done
"#;

/// Waits a tenth of a second by a new process: for a guest that reads its console elsewhere.
const WAIT_QEMU: &str = "/bin/busybox usleep 100000";

/// Waits a tenth of a second inside the shell, on a console that never answers: a process costs a
/// guest on kvm-pvm most of a second.
const WAIT_CLOUD_HYPERVISOR: &str = "read -t 0.1 line";

/// Debian's cloud kernel: the machine's own, or the one that `make deps` unpacked.
pub fn kernel() -> PathBuf {
    let unpacked = ch_integration::demo::guest::cache_dir().join("guest-kernel/boot");
    let mut kernels: Vec<PathBuf> = [Path::new("/boot"), &unpacked]
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.starts_with("vmlinuz-") && name.ends_with("-cloud-amd64")
        })
        .collect();
    kernels.sort_by_key(|path| path.file_name().unwrap().to_owned());
    kernels
        .pop()
        .expect("no vmlinuz-*-cloud-amd64 in /boot or the cache: run `make deps`")
}

/// Writes the counting guest's initramfs into `folder`.
pub fn initramfs(folder: &Path, kind: VmmKind) -> PathBuf {
    let wait = match kind {
        VmmKind::Qemu => WAIT_QEMU,
        VmmKind::CloudHypervisor => WAIT_CLOUD_HYPERVISOR,
    };
    let init = INIT.replace("WAIT", wait);
    let busybox =
        fs::read("/bin/busybox").expect("no /bin/busybox: apt-get install busybox-static");
    let mut archive = Vec::new();
    for name in ["bin", "proc"] {
        entry(&mut archive, name, 0o040_755, &[]);
    }
    entry(&mut archive, "bin/busybox", 0o100_755, &busybox);
    entry(&mut archive, "init", 0o100_755, init.as_bytes());
    entry(&mut archive, "TRAILER!!!", 0, &[]);
    let path = folder.join("initramfs");
    fs::write(&path, archive).unwrap();
    path
}

/// One entry of a cpio archive in its "newc" form.
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
    let fields = [
        1,
        mode,
        0,
        0,
        1,
        0,
        data.len() as u32,
        0,
        0,
        0,
        0,
        name.len() as u32 + 1,
        0,
    ];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

pub fn qemu_config(folder: &Path, name: &str, cmdline: &str) -> VmmConfig {
    let text = format!(
        "kind = \"qemu\"\naccel = \"tcg\"\nmemory_mib = 128\nkernel = {:?}\ninitrd = {:?}\n\
         ram_path = {:?}\ncmdline = {:?}\n",
        kernel(),
        initramfs(folder, VmmKind::Qemu),
        folder.join(name).join("ram"),
        format!("console=ttyS0 quiet panic=-1 {cmdline}"),
    );
    toml::from_str(&text).unwrap()
}

/// A Cloud Hypervisor guest, or why there can't be one here.
pub fn cloud_hypervisor_config(folder: &Path, name: &str) -> Result<VmmConfig, String> {
    let binary = std::env::var_os("PLOVER_CLOUD_HYPERVISOR")
        .map(PathBuf::from)
        .or_else(|| {
            let path = std::env::var_os("PATH")?;
            std::env::split_paths(&path)
                .map(|dir| dir.join("cloud-hypervisor"))
                .find(|p| p.exists())
        });
    let binary = binary.ok_or("no cloud-hypervisor in $PATH or $PLOVER_CLOUD_HYPERVISOR")?;
    let kvm = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    kvm.map_err(|error| format!("no cloud-hypervisor run: /dev/kvm: {error}"))?;
    let path_of = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let pvm = Path::new("/sys/module/kvm_pvm").exists();
    if pvm && (path_of("PLOVER_CH_KERNEL").is_none() || path_of("PLOVER_CH_PRELOAD").is_none()) {
        return Err("kvm-pvm needs $PLOVER_CH_KERNEL and $PLOVER_CH_PRELOAD".to_owned());
    }
    let cmdline = if pvm {
        PVM_CMDLINE
    } else {
        "console=ttyS0 quiet panic=-1"
    };
    let text = format!(
        "kind = \"cloud-hypervisor\"\nbinary = {binary:?}\nmemory_mib = 128\nkernel = {:?}\n\
         initrd = {:?}\nram_path = {:?}\ncmdline = {cmdline:?}\n",
        path_of("PLOVER_CH_KERNEL").unwrap_or_else(kernel),
        initramfs(folder, VmmKind::CloudHypervisor),
        folder.join(name).join("ram"),
    );
    let mut config: VmmConfig = toml::from_str(&text).unwrap();
    config.preload = path_of("PLOVER_CH_PRELOAD");
    Ok(config)
}

/// What the guest's kernel needs on a KVM without hardware virtualization.
const PVM_CMDLINE: &str = "console=ttyS0 clearcpuid=59,141,151,158,288,298,306,308,515,534 \
    nofsgsbase noxsave mitigations=off lpj=4000000 tsc=reliable no_timer_check quiet panic=-1";

/// What the guest has written to its serial line.
pub fn serial(run_dir: &Path) -> String {
    String::from_utf8_lossy(&fs::read(run_dir.join("serial.log")).unwrap_or_default()).into_owned()
}

/// The numbers counted so far.
pub fn counts(run_dir: &Path) -> Vec<u64> {
    counts_in(&serial(run_dir))
}

/// Asserts that `after`, what one copy wrote since it took over, goes on where `before`, what the
/// other had written, ends: byte by byte, since a line may be cut anywhere.
pub fn assert_goes_on(before: &str, after: &str) {
    let (seen, all) = (
        counts_in(before).len(),
        counts_in(&format!("{before}{after}")),
    );
    assert!(
        seen > 0 && all.len() > seen + 1,
        "{} then {}",
        tail(before),
        after
    );
    for pair in all[seen - 1..].windows(2) {
        assert_eq!(pair[1], pair[0] + 1, "{} then {after}", tail(before));
    }
}

fn tail(text: &str) -> &str {
    &text[text.floor_char_boundary(text.len().saturating_sub(40))..]
}

/// The numbers in whole lines of `text`.
pub fn counts_in(text: &str) -> Vec<u64> {
    let complete = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
    complete
        .lines()
        .filter_map(|line| line.split_once("count "))
        .filter_map(|(_, number)| number.trim().parse().ok())
        .collect()
}

pub fn last_count(run_dir: &Path) -> u64 {
    counts(run_dir).last().copied().unwrap_or(0)
}

/// Waits until `condition` holds.
pub fn wait_for(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "{what} did not happen within {within:?}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Writes the pages in which `to` differs from `from`, in place: as an apply does.
pub fn copy_ram(from: &Path, to: &Path) -> usize {
    use std::os::unix::fs::FileExt;
    let source = fs::File::open(from).unwrap();
    let target = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(to)
        .unwrap();
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let bytes = source.metadata().unwrap().len();
    assert_eq!(bytes, target.metadata().unwrap().len());
    let mut pages = 0;
    for offset in (0..bytes).step_by(a.len()) {
        source.read_exact_at(&mut a, offset).unwrap();
        target.read_exact_at(&mut b, offset).unwrap();
        for (index, (page, old)) in a.chunks(4096).zip(b.chunks(4096)).enumerate() {
            if page != old {
                target
                    .write_all_at(page, offset + index as u64 * 4096)
                    .unwrap();
                pages += 1;
            }
        }
    }
    pages
}

/// File descriptors and threads of a process.
pub fn resources(pid: u32) -> (usize, usize) {
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    (count("fd"), count("task"))
}

/// Collects how long steps take, and prints them.
#[derive(Default)]
pub struct Times(Vec<(&'static str, Vec<f64>)>);

impl Times {
    pub fn take<T>(&mut self, step: &'static str, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        let ms = start.elapsed().as_secs_f64() * 1e3;
        match self.0.iter_mut().find(|(name, _)| *name == step) {
            Some((_, times)) => times.push(ms),
            None => self.0.push((step, vec![ms])),
        }
        result
    }

    pub fn print(&mut self) {
        for (step, times) in &mut self.0 {
            times.sort_by(f64::total_cmp);
            let (min, median, max) = (times[0], times[times.len() / 2], times[times.len() - 1]);
            println!("{step:16} ms: min {min:6.2}  median {median:6.2}  max {max:6.2}");
        }
    }
}

pub fn launched(launched: Launched) -> Box<dyn Vmm> {
    assert!(
        launched.tracker.is_some(),
        "no tracker: {:?}",
        launched.tracker_reason
    );
    launched.vmm
}
