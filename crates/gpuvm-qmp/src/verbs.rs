//! The commands that a virtual machine's life needs, with answers in small structures of our own.
//!
//! Every verb takes the time that it may last. Words that QEMU may add to (a run state, a CPU's target) stay strings.

use crate::client::{QemuVersion, Qmp, WireVersion};
use crate::error::Error;
use qapi::Command;
use qapi::qmp;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Whether the virtual CPUs run, and QEMU's word for the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStatus {
    /// They run.
    pub running: bool,
    /// `running`, `prelaunch`, `paused`, `shutdown`, `guest-panicked`, `internal-error`, `io-error`, and what may come.
    pub status: String,
}

/// The host thread of one virtual CPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuThread {
    /// QEMU's number for the CPU, from 0.
    #[serde(rename = "cpu-index")]
    pub index: u32,
    /// The thread on the host, for its affinity.
    #[serde(rename = "thread-id")]
    pub thread_id: i32,
    /// Its place in QEMU's object tree.
    #[serde(rename = "qom-path")]
    pub qom_path: String,
}

/// What QEMU says about KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kvm {
    /// This machine uses it.
    pub enabled: bool,
    /// This QEMU was built with it.
    pub present: bool,
}

/// A property that a device type takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Property {
    /// Its key on the command line.
    pub name: String,
    /// QEMU's name for its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// QEMU's words about it.
    #[serde(default)]
    pub description: Option<String>,
}

/// A type in QEMU's object tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QomType {
    /// Its name, such as `vfio-pci`.
    pub name: String,
    /// The type that it extends.
    #[serde(default)]
    pub parent: Option<String>,
    /// It can't be made itself.
    #[serde(default, rename = "abstract")]
    pub is_abstract: bool,
}

/// All verbs fail as [`Error`] says.
impl Qmp {
    /// Lets the virtual CPUs run.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cont(&self, within: Duration) -> Result<(), Error> {
        self.done(qmp::cont {}, within).await
    }

    /// Stops the virtual CPUs.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn stop(&self, within: Duration) -> Result<(), Error> {
        self.done(qmp::stop {}, within).await
    }

    /// Presses the guest's power button; what the guest does about it shows in events.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn system_powerdown(&self, within: Duration) -> Result<(), Error> {
        self.done(qmp::system_powerdown {}, within).await
    }

    /// Resets the machine, as its reset button does. A QEMU that ends where a guest reboots closes the connection instead of an answer.
    ///
    /// # Errors
    /// See [`Error`], without `Closed`.
    pub async fn system_reset(&self, within: Duration) -> Result<(), Error> {
        match self.done(qmp::system_reset {}, within).await {
            Err(Error::Closed { .. }) => Ok(()),
            result => result,
        }
    }

    /// Tells QEMU to exit. A connection that ends instead of an answer is one; only the exit of the process is proof.
    ///
    /// # Errors
    /// See [`Error`], without `Closed`.
    pub async fn quit(&self, within: Duration) -> Result<(), Error> {
        match self.done(qmp::quit {}, within).await {
            Err(Error::Closed { .. }) => Ok(()),
            result => result,
        }
    }

    /// Gives QEMU a connected socket as the new backend of a character device, such as a serial port whose old one has hung up.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn reconnect_chardev(&self, id: &str, socket: OwnedFd, within: Duration) -> Result<(), Error> {
        // QEMU keeps it under this name until the next command takes it.
        let name = format!("{id}-socket");
        self.execute_with_fd(qmp::getfd { fdname: name.clone() }, socket, within).await?;
        let address = json!({"type": "fd", "data": {"str": name}});
        let backend = json!({"type": "socket", "data": {"addr": address, "server": false}});
        let arguments = json!({"id": id, "backend": backend});
        self.execute_value("chardev-change", arguments, within).await.map(drop)
    }

    /// Asks whether the virtual CPUs run.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn query_status(&self, within: Duration) -> Result<RunStatus, Error> {
        self.ask(qmp::query_status {}, within).await
    }

    /// The host threads of the virtual CPUs, in QEMU's order.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn vcpu_threads(&self, within: Duration) -> Result<Vec<VcpuThread>, Error> {
        self.ask(qmp::query_cpus_fast {}, within).await
    }

    /// Asks QEMU for its version; [`Qmp::version`] has what the greeting told.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn query_version(&self, within: Duration) -> Result<QemuVersion, Error> {
        self.ask::<_, WireVersion>(qmp::query_version {}, within).await.map(QemuVersion::from)
    }

    /// Asks whether KVM is there and in use.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn query_kvm(&self, within: Duration) -> Result<Kvm, Error> {
        self.ask(qmp::query_kvm {}, within).await
    }

    /// The properties that a device type takes.
    ///
    /// # Errors
    /// [`Error::Command`] with class `DeviceNotFound` for a type that this QEMU lacks; else see [`Error`].
    pub async fn device_list_properties(
        &self,
        typename: &str,
        within: Duration,
    ) -> Result<Vec<Property>, Error> {
        self.ask(qmp::device_list_properties { typename: typename.to_owned() }, within).await
    }

    /// The types that extend `implements` (`None`: all), without abstract ones.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn qom_list_types(
        &self,
        implements: Option<&str>,
        within: Duration,
    ) -> Result<Vec<QomType>, Error> {
        let command =
            qmp::qom_list_types { implements: implements.map(str::to_owned), abstract_: Some(false) };
        self.ask(command, within).await
    }

    /// The guest's PCI buses as QEMU tells them: its answer to `query-pci`, unread.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn query_pci(&self, within: Duration) -> Result<Value, Error> {
        self.execute_value("query-pci", json!({}), within).await
    }

    /// Runs a command whose answer says no more than that it was taken.
    async fn done<C: Command>(&self, command: C, within: Duration) -> Result<(), Error> {
        self.ask::<C, IgnoredAny>(command, within).await.map(drop)
    }

    /// Runs a command of qapi's and reads its answer as a type of ours.
    async fn ask<C: Command, T: DeserializeOwned>(&self, command: C, within: Duration) -> Result<T, Error> {
        self.execute_as(C::NAME, command, within).await
    }
}
