//! What `plover demo` can be told.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use super::guest::{GUEST_CMDLINE, GUEST_MEMORY_MIB, GuestImage, cache_dir};

/// Longest load without a rate: the guest's memory is bounded, and every write stays in it.
const UNLIMITED_LOAD_SECONDS_MAX: u64 = 120;
/// Command line of the counter's guest, for a KVM without hardware virtualization.
const COUNTER_CMDLINE: &str = "console=ttyS0 \
     clearcpuid=59,141,151,158,288,298,306,308,515,534 nofsgsbase noxsave mitigations=off \
     lpj=4000000 tsc=reliable no_timer_check quiet";
/// Memory of the counter's guest in MiB.
const COUNTER_MEMORY_MIB: u64 = 128;

/// Options of `plover demo`.
#[derive(Args, Clone, Debug)]
pub struct DemoOptions {
    /// Seed of the kill's moment and of the values written.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// When a host is killed: the primary's at a moment that the seed draws (`time`), never
    /// (`none`), or inside a step of a sync (`step=NAME`): pause, collect, digest, exchange,
    /// compare, blocks, send, resume; of the backup, whose host is killed then: stage, verify,
    /// staged, commit, apply, load. `step=NAME@primary` and `step=NAME@backup` say whose host.
    #[arg(long, default_value = "time", value_name = "PLAN")]
    pub kills: KillPlan,
    /// How long the clients write.
    #[arg(long, default_value_t = 20)]
    pub load_seconds: u64,
    /// Connections of the checking client.
    #[arg(long, default_value_t = 8)]
    pub clients: u32,
    /// Writes per second and connection; without it, as fast as replies come.
    #[arg(long)]
    pub rate: Option<u32>,
    /// Requests under way per connection.
    #[arg(long, default_value_t = 1)]
    pub depth: usize,
    /// No `redis-benchmark` in the background.
    #[arg(long)]
    pub no_benchmark: bool,
    /// Where logs and records go [default: a folder in /var/tmp/plover-demo].
    #[arg(long)]
    pub run_dir: Option<PathBuf>,
    /// The report as JSON instead of the table.
    #[arg(long)]
    pub json: bool,
    /// The VMM [default: $PLOVER_VMM, else qemu].
    #[arg(long)]
    pub vmm: Option<DemoVmm>,
    /// Kernel of the UDP counter's guest [default: $PLOVER_GUEST_KERNEL].
    #[arg(long)]
    pub kernel: Option<PathBuf>,
    /// Initramfs of the UDP counter's guest [default: $PLOVER_GUEST_INITRD].
    #[arg(long)]
    pub initrd: Option<PathBuf>,
    /// How long after its last heartbeat a silent leader is given up, at most.
    #[arg(long, default_value_t = 250)]
    pub detection_ms: u32,
    /// More lines for each replica's configuration, as `debug.deliver_to_backup=false`;
    /// `{state_dir}` stands for the node's folder.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub settings: Vec<Setting>,
    /// Keep namespaces and processes at the end, until Enter or Ctrl-C.
    #[arg(long)]
    pub keep: bool,
    /// Only remove what dead runs left behind.
    #[arg(long)]
    pub clean: bool,
    /// The `plover` binary [default: beside this one].
    #[arg(long, hide = true)]
    pub node_binary: Option<PathBuf>,
    /// The `plover-check` binary [default: beside this one].
    #[arg(long, hide = true)]
    pub check_binary: Option<PathBuf>,
}

impl Default for DemoOptions {
    fn default() -> Self {
        Self {
            seed: 1,
            kills: KillPlan::Time,
            load_seconds: 20,
            clients: 8,
            rate: None,
            depth: 1,
            no_benchmark: false,
            run_dir: None,
            json: false,
            vmm: None,
            kernel: None,
            initrd: None,
            detection_ms: 250,
            settings: Vec::new(),
            keep: false,
            clean: false,
            node_binary: None,
            check_binary: None,
        }
    }
}

/// When the primary's host is killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KillPlan {
    /// Never.
    None,
    /// At a moment that the seed draws.
    Time,
    /// From that moment on, as soon as a replica enters this step.
    Step {
        /// The step.
        step: String,
        /// Whose host is killed.
        victim: Victim,
    },
}

/// Whose host a kill inside a step kills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The one that takes the step; the primary, if both do.
    Taker,
    /// The primary, whoever takes the step.
    Primary,
    /// The backup, whoever takes the step.
    Backup,
}

impl FromStr for KillPlan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("step=")) {
            ("none", _) => Ok(Self::None),
            ("time", _) => Ok(Self::Time),
            (_, Some(step)) if !step.is_empty() => {
                let (step, victim) = match step.split_once('@') {
                    None => (step, Victim::Taker),
                    Some((step, "primary")) => (step, Victim::Primary),
                    Some((step, "backup")) => (step, Victim::Backup),
                    Some((_, other)) => return Err(format!("{other:?} is no replica")),
                };
                let step = step.to_owned();
                Ok(Self::Step { step, victim })
            }
            _ => Err(format!("{text:?} is no plan; use time, none or step=NAME")),
        }
    }
}

/// A value for a key of the nodes' configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The section, as `debug`.
    pub section: String,
    /// The key in it.
    pub key: String,
    /// The value in TOML's form.
    pub value: String,
}

impl Setting {
    /// Lets a replica that is armed die at `step` of a sync.
    pub(super) fn die_at(step: &str) -> Self {
        Self {
            section: "debug".to_owned(),
            key: "die_at_step".to_owned(),
            value: serde_json::Value::from(step).to_string(),
        }
    }
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=').and_then(|(path, value)| {
            path.rsplit_once('.')
                .map(|(section, key)| (section, key, value))
        });
        let (section, key, value) =
            parts.ok_or_else(|| format!("{text:?} is not SECTION.KEY=VALUE"))?;
        Ok(Self {
            section: section.to_owned(),
            key: key.to_owned(),
            value: value.to_owned(),
        })
    }
}

/// The VMM of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DemoVmm {
    /// Debian's QEMU.
    Qemu,
    /// Cloud Hypervisor, with KVM.
    CloudHypervisor,
}

impl DemoVmm {
    /// Its name in the nodes' configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::CloudHypervisor => "cloud-hypervisor",
        }
    }
}

/// What the guest serves, and so what the client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// redis over TCP.
    Redis,
    /// The UDP counter.
    Counter,
}

/// The guest of a run.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Kernel and initramfs.
    pub image: GuestImage,
    /// The kernel's command line.
    pub cmdline: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// What it serves.
    pub service: Service,
}

impl DemoOptions {
    /// What clap can't see: combinations that can't work.
    pub fn check(&self) -> Result<()> {
        if self.load_seconds < 2 || self.clients == 0 || self.depth == 0 {
            bail!("use --load-seconds 2 or more, --clients 1 or more, --depth 1 or more");
        }
        if self.rate.is_none() && self.load_seconds > UNLIMITED_LOAD_SECONDS_MAX {
            bail!(
                "every write stays in the guest's memory: for more than \
                 {UNLIMITED_LOAD_SECONDS_MAX} s of load, bound it with --rate"
            );
        }
        Ok(())
    }

    /// The VMM: of the option, else of `PLOVER_VMM`.
    pub fn chosen_vmm(&self) -> Result<DemoVmm> {
        if let Some(vmm) = self.vmm {
            return Ok(vmm);
        }
        match std::env::var("PLOVER_VMM") {
            Ok(name) => DemoVmm::from_str(&name, false)
                .ok()
                .with_context(|| format!("PLOVER_VMM={name}: use qemu or cloud-hypervisor")),
            Err(_) => Ok(DemoVmm::Qemu),
        }
    }

    /// The guest: the counter where a kernel is given, else redis on Debian's kernel.
    pub fn chosen_guest(&self, vmm: DemoVmm) -> Result<Guest> {
        let given = |option: &Option<PathBuf>, name: &str| {
            option
                .clone()
                .or_else(|| std::env::var_os(name).map(PathBuf::from))
        };
        let kernel = given(&self.kernel, "PLOVER_GUEST_KERNEL");
        let initrd = given(&self.initrd, "PLOVER_GUEST_INITRD");
        match (kernel, initrd) {
            (Some(kernel), Some(initrd)) => {
                let description = format!("UDP counter on {}", kernel.display());
                Ok(Guest {
                    image: GuestImage {
                        kernel,
                        initrd,
                        description,
                    },
                    cmdline: COUNTER_CMDLINE.to_owned(),
                    memory_mib: COUNTER_MEMORY_MIB,
                    service: Service::Counter,
                })
            }
            (None, None) if vmm == DemoVmm::CloudHypervisor && !hardware_kvm() => bail!(
                "the KVM of this machine is software (no kvm_intel or kvm_amd) and does not run \
                 Debian's kernel: name one that it runs, with its initramfs, by --kernel and \
                 --initrd or PLOVER_GUEST_KERNEL and PLOVER_GUEST_INITRD"
            ),
            (None, None) => Ok(Guest {
                image: GuestImage::prepare(&cache_dir())?,
                cmdline: GUEST_CMDLINE.to_owned(),
                memory_mib: GUEST_MEMORY_MIB,
                service: Service::Redis,
            }),
            _ => bail!("--kernel and --initrd (or their variables) come together"),
        }
    }
}

/// Does KVM run stock kernels here? A /dev/kvm alone does not tell.
pub fn hardware_kvm() -> bool {
    ["kvm_intel", "kvm_amd"]
        .iter()
        .any(|module| std::path::Path::new("/sys/module").join(module).exists())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        options: DemoOptions,
    }

    #[test]
    fn the_defaults_of_the_command_line_and_of_tests_are_the_same() {
        let parsed = Command::parse_from(["demo"]).options;
        assert_eq!(
            format!("{parsed:?}"),
            format!("{:?}", DemoOptions::default())
        );
    }

    #[test]
    fn plans_and_settings_are_read() {
        let apply = |victim| KillPlan::Step {
            step: "apply".to_owned(),
            victim,
        };
        assert_eq!("step=apply".parse(), Ok(apply(Victim::Taker)));
        assert_eq!("step=apply@primary".parse(), Ok(apply(Victim::Primary)));
        assert!("step=apply@witness".parse::<KillPlan>().is_err());
        assert!("step=".parse::<KillPlan>().is_err());
        assert!("sometimes".parse::<KillPlan>().is_err());
        let setting: Setting = "debug.deliver_to_backup=false".parse().unwrap();
        assert_eq!(
            (setting.section.as_str(), setting.value.as_str()),
            ("debug", "false")
        );
        assert!("debug=1".parse::<Setting>().is_err());
    }

    #[test]
    fn a_load_that_cannot_fit_the_guest_is_refused() {
        let long = DemoOptions {
            load_seconds: 1000,
            ..DemoOptions::default()
        };
        assert!(long.check().is_err());
        assert!(
            DemoOptions {
                rate: Some(100),
                ..long
            }
            .check()
            .is_ok()
        );
    }
}
