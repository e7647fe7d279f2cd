//! The guest of the demo: Debian's cloud kernel and an initramfs with busybox and redis-server.
//! Built once into a cache folder, named by what went into it. Doesn't start anything.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::cpio::CpioWriter;

const INIT: &str = include_str!("../../../tests/guest/init");
const BUSYBOX: &str = "/bin/busybox";
/// In Debian `redis-server` is this binary by another name; it looks at its argv[0].
/// Taken from `redis-tools`, so no package that starts a service is needed.
const REDIS: &str = "/usr/bin/redis-check-rdb";

/// Modules in the order in which they must be inserted. `false`: newer kernels only.
const MODULES: [(&str, bool); 9] = [
    ("virtio_ring", true),
    ("virtio", true),
    ("virtio_pci_modern_dev", true),
    ("virtio_pci_legacy_dev", true),
    ("virtio_pci", true),
    ("failover", true),
    ("net_failover", true),
    ("dimlib", false),
    ("virtio_net", true),
];

/// Address of the guest on the client's network.
pub const GUEST_IP: &str = "10.78.0.2";
/// Port of redis in the guest.
pub const GUEST_PORT: u16 = 6379;
/// Memory of the guest in MiB.
pub const GUEST_MEMORY_MIB: u64 = 256;
/// The kernel's command line. No IPv6, so that nothing is sent on the guest's own
/// initiative; `panic=-1` turns a panic into a reset, which the VMM driver sees.
pub const GUEST_CMDLINE: &str = "console=ttyS0 quiet panic=-1 ipv6.disable=1 mitigations=off \
     transparent_hugepage=never random.trust_cpu=on rcupdate.rcu_normal=1 net.ifnames=0 \
     nowatchdog";

/// A kernel and an initramfs to boot.
#[derive(Clone, Debug)]
pub struct GuestImage {
    /// The kernel image.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
    /// What it is, for the log.
    pub description: String,
}

/// Folder for what is built or downloaded once: `PLOVER_CACHE`, else `XDG_CACHE_HOME/plover`,
/// else `~/.cache/plover`. The Makefile uses the same rule.
pub fn cache_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("PLOVER_CACHE") {
        return PathBuf::from(dir);
    }
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache")
        });
    base.join("plover")
}

impl GuestImage {
    /// Finds the kernel and builds the initramfs unless the cache has it.
    pub fn prepare(cache: &Path) -> Result<Self> {
        let kernel = newest_kernel(cache)?;
        for binary in [BUSYBOX, REDIS] {
            if !Path::new(binary).exists() {
                bail!("{binary} is missing: `make deps` installs busybox-static and redis-tools");
            }
        }
        let libraries = libraries_of(REDIS)?;
        let key = fingerprint(&kernel, &libraries)?;
        let initrd = cache.join(format!("guest-{key:016x}.cpio"));
        if !initrd.exists() {
            build(&initrd, &kernel, &libraries)
                .with_context(|| format!("build the guest image {}", initrd.display()))?;
        }
        let description = format!("Linux {} with busybox and redis-server", kernel.version);
        Ok(Self {
            kernel: kernel.image,
            initrd,
            description,
        })
    }
}

struct Kernel {
    version: String,
    image: PathBuf,
    modules: PathBuf,
}

/// The newest `*-cloud-amd64` kernel: installed, or unpacked by `make deps` into the cache.
fn newest_kernel(cache: &Path) -> Result<Kernel> {
    let mut found = Vec::new();
    for root in [PathBuf::from("/"), cache.join("guest-kernel")] {
        let Ok(entries) = fs::read_dir(root.join("boot")) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(version) = name.strip_prefix("vmlinuz-") else {
                continue;
            };
            let modules = ["lib/modules", "usr/lib/modules"]
                .iter()
                .map(|base| root.join(base).join(version))
                .find(|path| path.is_dir());
            if let (true, Some(modules)) = (version.contains("cloud-amd64"), modules) {
                found.push(Kernel {
                    version: version.to_owned(),
                    image: entry.path(),
                    modules,
                });
            }
        }
    }
    found
        .into_iter()
        .max_by_key(|kernel| version_numbers(&kernel.version))
        .context("no linux-image-*-cloud-amd64 is installed or unpacked: run `make deps`")
}

fn version_numbers(version: &str) -> Vec<u64> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

/// Shared libraries that a program needs, as `ldd` finds them, with the loader.
fn libraries_of(program: &str) -> Result<BTreeSet<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .context("run ldd")?;
    if !output.status.success() {
        bail!(
            "ldd {program}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let text = String::from_utf8_lossy(&output.stdout);
    if let Some(line) = text.lines().find(|line| line.contains("not found")) {
        bail!("ldd {program}: {}", line.trim());
    }
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

/// Changes when any input does: path, size and time of change.
fn fingerprint(kernel: &Kernel, libraries: &BTreeSet<PathBuf>) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    INIT.hash(&mut hasher);
    MODULES.hash(&mut hasher);
    kernel.version.hash(&mut hasher);
    let fixed = [Path::new(BUSYBOX), Path::new(REDIS), &kernel.image];
    for path in libraries.iter().map(PathBuf::as_path).chain(fixed) {
        let metadata = fs::metadata(path).with_context(|| format!("look at {}", path.display()))?;
        (path, metadata.len(), metadata.mtime()).hash(&mut hasher);
    }
    Ok(hasher.finish())
}

fn build(target: &Path, kernel: &Kernel, libraries: &BTreeSet<PathBuf>) -> Result<()> {
    let folder = target.parent().context("the cache has no parent folder")?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    // Under another name until it is whole, so that two builders don't meet.
    let partial = target.with_extension(format!("partial-{}", std::process::id()));
    let file = fs::File::create(&partial).context("create the archive")?;
    let mut cpio = CpioWriter::new(BufWriter::new(file));
    add_skeleton(&mut cpio)?;
    add_modules(&mut cpio, kernel)?;
    add_programs(&mut cpio, libraries)?;
    cpio.finish()?;
    fs::rename(&partial, target).context("put the archive in place")
}

fn add_skeleton<W: Write>(cpio: &mut CpioWriter<W>) -> Result<()> {
    for path in [
        "bin", "dev", "modules", "proc", "sys", "tmp", "usr", "usr/bin",
    ] {
        cpio.directory(path)?;
    }
    // The kernel opens /dev/console before init could mount anything.
    cpio.char_device("dev/console", 5, 1)?;
    cpio.char_device("dev/null", 1, 3)?;
    cpio.file("init", 0o755, INIT.as_bytes())?;
    Ok(())
}

fn add_modules<W: Write>(cpio: &mut CpioWriter<W>, kernel: &Kernel) -> Result<()> {
    let builtin = fs::read_to_string(kernel.modules.join("modules.builtin")).unwrap_or_default();
    let mut order = String::new();
    for (name, required) in MODULES {
        match find_module(&kernel.modules.join("kernel"), name) {
            Some(path) => {
                cpio.file(&format!("modules/{name}.ko"), 0o644, &read_module(&path)?)?;
                order.push_str(&format!("{name}.ko\n"));
            }
            None if !required || builtin.contains(&format!("/{name}.ko")) => {}
            None => bail!("{} has no module {name}", kernel.modules.display()),
        }
    }
    cpio.file("modules/order", 0o644, order.as_bytes())?;
    Ok(())
}

fn find_module(folder: &Path, name: &str) -> Option<PathBuf> {
    let mut below = Vec::new();
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        let file_name = entry.file_name().to_string_lossy().replace('-', "_");
        if path.is_dir() {
            below.push(path);
        } else if file_name
            .split_once(".ko")
            .is_some_and(|(stem, _)| stem == name)
        {
            return Some(path);
        }
    }
    below.iter().find_map(|folder| find_module(folder, name))
}

/// The module's bytes; newer distributions compress them.
fn read_module(path: &Path) -> Result<Vec<u8>> {
    let unpacker = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).with_context(|| format!("read {}", path.display())),
    };
    let output = Command::new(unpacker)
        .arg("-dc")
        .arg(path)
        .output()
        .with_context(|| format!("run {unpacker}"))?;
    if !output.status.success() {
        bail!("{unpacker} could not unpack {}", path.display());
    }
    Ok(output.stdout)
}

fn add_programs<W: Write>(cpio: &mut CpioWriter<W>, libraries: &BTreeSet<PathBuf>) -> Result<()> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
    cpio.file("bin/busybox", 0o755, &read(Path::new(BUSYBOX))?)?;
    cpio.symlink("bin/sh", "busybox")?;
    cpio.file("usr/bin/redis-server", 0o755, &read(Path::new(REDIS))?)?;
    let mut folders = BTreeSet::new();
    for library in libraries {
        for folder in library
            .ancestors()
            .skip(1)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
        {
            let name = folder.to_string_lossy();
            let there = ["/", "/usr", "/usr/bin"].contains(&name.as_ref());
            if !there && folders.insert(folder.to_path_buf()) {
                cpio.directory(&name)?;
            }
        }
        cpio.file(&library.to_string_lossy(), 0o755, &read(library)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_chosen_by_number_not_by_spelling() {
        let old = version_numbers("6.1.0-9-cloud-amd64");
        let new = version_numbers("6.1.0-56-cloud-amd64");
        assert!(new > old);
    }

    #[test]
    fn a_module_is_found_below_and_under_either_spelling() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("drivers/net");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("net-failover.ko.xz"), b"x").unwrap();
        fs::write(deep.join("virtio_net.ko"), b"x").unwrap();
        let found = find_module(folder.path(), "net_failover").unwrap();
        assert!(found.ends_with("drivers/net/net-failover.ko.xz"));
        assert!(
            find_module(folder.path(), "virtio").is_none(),
            "a prefix is not the name"
        );
    }
}
