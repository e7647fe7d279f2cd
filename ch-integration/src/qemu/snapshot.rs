//! vCPU and device state through QEMU's `snapshot-save` and `snapshot-load`, memory left out by
//! the capability x-ignore-shared.
//!
//! QEMU puts such a state into a qcow2 image that belongs to no disk. Each capture writes into a
//! fresh copy of an empty image; the empty image is made once, by QEMU itself, at the start.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::qmp::{Deadline, Qmp};
use crate::error::VmmError;
use crate::limits;

const NODE: &str = "plover-state";
const TAG: &str = "plover";
const JOB: &str = "plover-job";
/// Virtual size of the image, none of which is used: the state lies behind it.
const IMAGE_BYTES: u64 = 1 << 20;
/// Smaller clusters mean less padding and more metadata.
const CLUSTER_BYTES: u64 = 64 << 10;

/// Captures and loads states by way of one image file.
pub(super) struct Snapshots {
    path: PathBuf,
    empty_image: Vec<u8>,
    image: Image,
}

/// The image that is attached to QEMU.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Image {
    None,
    /// An empty one has been asked for; the answer is not taken yet.
    Asked,
    /// An empty one, ready for a capture.
    Ready,
}

impl Snapshots {
    /// Has QEMU make the empty image.
    pub(super) fn new(qmp: &mut Qmp, run_dir: &Path) -> Result<Self, VmmError> {
        let path = run_dir.join("state.qcow2");
        let mut snapshots = Self {
            path,
            empty_image: Vec::new(),
            image: Image::None,
        };
        snapshots.empty_image = snapshots.make_empty_image(qmp)?;
        Ok(snapshots)
    }

    fn make_empty_image(&self, qmp: &mut Qmp) -> Result<Vec<u8>, VmmError> {
        self.write(&[])?;
        let file = json!({"driver": "file", "filename": self.path, "node-name": NODE});
        qmp.execute("blockdev-add", &file, limits::CALL_TIMEOUT)?;
        let options = json!({
            "driver": "qcow2", "file": NODE, "size": IMAGE_BYTES, "cluster-size": CLUSTER_BYTES,
        });
        let made = run_job(qmp, "blockdev-create", json!({"options": options}));
        detach(qmp)?;
        made?;
        fs::read(&self.path).map_err(|source| self.failed("reading", source))
    }

    /// Asks for an empty image for the next capture, without waiting for it: while the guest runs,
    /// QEMU's main loop waits its turn behind the vCPU for milliseconds.
    pub(super) fn prepare(&mut self, qmp: &mut Qmp) -> Result<(), VmmError> {
        if self.image != Image::None {
            return Ok(());
        }
        self.write(&self.empty_image)?;
        qmp.execute_later("blockdev-add", &self.node())?;
        self.image = Image::Asked;
        Ok(())
    }

    /// Sees that what was asked for is there.
    fn settle(&mut self, qmp: &mut Qmp) -> Result<(), VmmError> {
        if self.image == Image::Asked {
            self.image = Image::None;
            qmp.answer_later("blockdev-add")?;
            self.image = Image::Ready;
        }
        Ok(())
    }

    /// The state of the stopped guest.
    pub(super) fn capture(&mut self, qmp: &mut Qmp) -> Result<Vec<u8>, VmmError> {
        self.prepare(qmp)?;
        self.settle(qmp)?;
        self.image = Image::None;
        let saved = run_job(qmp, "snapshot-save", snapshot_arguments());
        let bytes = fs::read(&self.path).map_err(|source| self.failed("reading", source));
        detach(qmp)?;
        saved?;
        let mut bytes = bytes?;
        // An image that ends early reads as zeros from there on.
        let used = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        bytes.truncate(used.next_multiple_of(512));
        Ok(bytes)
    }

    /// Loads `image` into the stopped guest.
    pub(super) fn load(&mut self, qmp: &mut Qmp, image: &[u8]) -> Result<(), VmmError> {
        // An image that could not be attached is not in the way.
        if self.settle(qmp).is_ok() && self.image == Image::Ready {
            self.image = Image::None;
            detach(qmp)?;
        }
        self.write(image)?;
        qmp.execute("blockdev-add", &self.node(), limits::CALL_TIMEOUT)?;
        let loaded = run_job(qmp, "snapshot-load", snapshot_arguments());
        detach(qmp)?;
        loaded
    }

    fn node(&self) -> Value {
        json!({
            "driver": "qcow2",
            "node-name": NODE,
            "cache": {"direct": false, "no-flush": true},
            "file": {
                "driver": "file",
                "filename": self.path,
                "locking": "off",
                "cache": {"direct": false, "no-flush": true},
            },
        })
    }

    fn write(&self, bytes: &[u8]) -> Result<(), VmmError> {
        fs::write(&self.path, bytes).map_err(|source| self.failed("writing", source))
    }

    fn failed(&self, action: &str, source: io::Error) -> VmmError {
        VmmError::io(format!("{action} {:?}", self.path), source)
    }
}

fn snapshot_arguments() -> Value {
    json!({"tag": TAG, "vmstate": NODE, "devices": [NODE]})
}

fn detach(qmp: &mut Qmp) -> Result<(), VmmError> {
    qmp.execute(
        "blockdev-del",
        &json!({"node-name": NODE}),
        limits::CALL_TIMEOUT,
    )
    .map(drop)
}

/// Starts a job, waits for its end, and takes its error.
fn run_job(qmp: &mut Qmp, command: &str, mut arguments: Value) -> Result<(), VmmError> {
    arguments["job-id"] = json!(JOB);
    let deadline = Deadline::after(limits::CALL_TIMEOUT);
    qmp.execute(command, &arguments, limits::CALL_TIMEOUT)?;
    let concluded = wait_concluded(qmp, command, deadline);
    qmp.forget_events("JOB_STATUS_CHANGE");
    concluded?;
    let jobs = qmp.execute("query-jobs", &json!({}), limits::CALL_TIMEOUT)?;
    qmp.execute("job-dismiss", &json!({"id": JOB}), limits::CALL_TIMEOUT)?;
    match job_error(&jobs) {
        None => Ok(()),
        Some(message) => Err(VmmError::Answered {
            what: command.to_owned(),
            message,
        }),
    }
}

fn wait_concluded(qmp: &mut Qmp, command: &str, deadline: Deadline) -> Result<(), VmmError> {
    qmp.wait_event(command, deadline, |event| {
        let data = event.get("data")?;
        let ours = data.get("id")?.as_str()? == JOB;
        (ours && data.get("status")?.as_str()? == "concluded").then_some(())
    })
}

fn job_error(jobs: &Value) -> Option<String> {
    let job = jobs.as_array()?.iter().find(|job| job["id"] == JOB)?;
    job.get("error")?.as_str().map(str::to_owned)
}
