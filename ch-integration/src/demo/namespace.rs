//! Network namespaces by name: create, enter, find and kill what runs inside, remove.
//! What is wired between them is `network.rs`.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Where `ip netns` keeps its names.
const NETNS_DIR: &str = "/run/netns";
/// How long processes may take to vanish after SIGKILL.
const DEATH_WAIT: Duration = Duration::from_secs(10);

/// A network namespace. Dropping the last owner kills what runs in it and removes it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Creates a namespace without IPv6, so that nothing chatters in it by itself.
    pub fn create(name: &str) -> Result<Self> {
        run_ip(&["netns", "add", name])?;
        let namespace = Self {
            name: name.to_owned(),
        };
        namespace.enter(|| -> Result<()> {
            for scope in ["all", "default"] {
                let path = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
                if Path::new(&path).exists() {
                    fs::write(&path, "1").with_context(|| format!("write {path}"))?;
                }
            }
            Ok(())
        })??;
        Ok(namespace)
    }

    /// Its name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    /// Runs `work` on a thread that has entered the namespace. Sockets and child processes
    /// made there stay there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = self.path();
        std::thread::scope(|scope| {
            scope
                .spawn(move || -> Result<T> {
                    enter_this_thread(&path)?;
                    Ok(work())
                })
                .join()
                .map_err(|_| anyhow!("the thread in namespace {} panicked", self.name))?
        })
    }

    /// A handle that other threads can use to enter it themselves.
    pub fn entrance(&self) -> Entrance {
        Entrance { path: self.path() }
    }

    /// Starts a process inside, in a process group of its own, so that a Ctrl-C at the
    /// terminal reaches the demo alone.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        use std::os::unix::process::CommandExt;
        command.stdin(Stdio::null()).process_group(0);
        let program = command.get_program().to_string_lossy().into_owned();
        self.enter(|| command.spawn())?
            .with_context(|| format!("start {program} in namespace {}", self.name))
    }

    /// Configures links inside: one `ip` command per line.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        use std::io::Write;
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start ip")?;
        if let Some(mut input) = child.stdin.take() {
            input
                .write_all(lines.as_bytes())
                .context("give ip its commands")?;
        }
        let output = child.wait_with_output().context("wait for ip")?;
        if !output.status.success() {
            bail!(
                "ip in {}: {}",
                self.name,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    /// Processes whose network namespace this is.
    pub fn pids(&self) -> Vec<i32> {
        pids_in(&self.path())
    }

    /// SIGKILL to everything inside, at once and until nothing is left.
    /// Returns how many processes were hit first.
    pub fn kill_all(&self) -> Result<usize> {
        kill_all_in(&self.path())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.name) {
            eprintln!(
                "plover demo: namespace {} is left behind: {error:#}",
                self.name
            );
        }
    }
}

/// Lets a thread enter a namespace.
#[derive(Clone, Debug)]
pub struct Entrance {
    path: PathBuf,
}

impl Entrance {
    /// Moves the calling thread, for good.
    pub fn enter(&self) -> Result<()> {
        enter_this_thread(&self.path)
    }

    /// An entrance to the namespace the caller is in already.
    pub fn here() -> Self {
        Self {
            path: PathBuf::from("/proc/thread-self/ns/net"),
        }
    }
}

/// Kills what is inside a namespace and removes its name.
pub fn remove(name: &str) -> Result<()> {
    kill_all_in(&Path::new(NETNS_DIR).join(name))?;
    run_ip(&["netns", "delete", name])
}

/// Names of all namespaces that `ip netns` knows.
pub fn list() -> Vec<String> {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Runs `ip` with arguments and reports what it complains of.
pub fn run_ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("run ip (iproute2)")?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("ip {}: {}", arguments.join(" "), complaint.trim());
    }
    Ok(())
}

fn enter_this_thread(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {}", path.display()))
}

fn pids_in(namespace: &Path) -> Vec<i32> {
    let Ok(wanted) = fs::metadata(namespace).map(|metadata| (metadata.dev(), metadata.ino()))
    else {
        return Vec::new();
    };
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own)
        .filter(|pid| {
            fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == wanted)
        })
        .collect()
}

fn kill_all_in(namespace: &Path) -> Result<usize> {
    let first = pids_in(namespace);
    for pid in &first {
        // It may be gone by now; the next look tells.
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    let deadline = Instant::now() + DEATH_WAIT;
    loop {
        let left = pids_in(namespace);
        if left.is_empty() {
            return Ok(first.len());
        }
        if Instant::now() > deadline {
            bail!(
                "processes {left:?} in {} survive SIGKILL",
                namespace.display()
            );
        }
        for pid in left {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
