//! What the scratch space's warden asks of libvirt, over a connection of its own: nothing that goes on in the other one is
//! waited for when the guest is to be let go.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use libvirt::Event as Told;
use tokio::sync::broadcast;

use super::end;
use super::link::{LIMIT, Link, Target};
use super::watch::{Keep, now};
use super::xml;
use crate::error::Result;
use crate::vm::Event;
use crate::vm::warden::{Alarm, Guest, Warden};

/// Starts the warden. `limit` is `scratch_limit=`, in bytes.
pub(super) fn start(target: Target, keep: Arc<Keep>, events: broadcast::Sender<Event>, limit: Option<u64>) -> Warden {
    let alarm = Arc::new(OnceLock::<Alarm>::new());
    let on_event = {
        let alarm = Arc::clone(&alarm);
        move |event: &Told| {
            if let (Told::BlockThreshold { .. }, Some(alarm)) = (event, alarm.get()) {
                alarm.grew();
            }
        }
    };
    let guard = Guard { link: Link::start(target, Box::new(on_event)), keep };
    let warden = Warden::start(Arc::new(guard), events, limit);
    // Nothing is told before the first question.
    alarm.set(warden.alarm()).ok();
    warden
}

struct Guard {
    link: Link,
    keep: Arc<Keep>,
}

#[async_trait]
impl Guest for Guard {
    fn whom(&self) -> &'static str {
        "libvirt"
    }

    async fn warn_beyond(&self, target: &str, offset: u64) -> Result<bool> {
        let Some(held) = now(&self.keep.held) else { return Ok(false) };
        let target = target.to_owned();
        // Before the backup begins this connects: it is there when the guest must be let go.
        let told = self.link.call("tell when a scratch image grows", LIMIT, move |domain| {
            let Ok(told) = domain.backup_xml() else { return Ok(Ok(false)) };
            match xml::scratch_image(&told, &held.mark, &target) {
                Ok(Some(image)) => domain.set_block_threshold(&image, offset).map(|()| Ok(true)),
                other => Ok(other.map(|_| false)),
            }
        });
        told.await?
    }

    async fn migrates(&self) -> Result<bool> {
        // libvirt migrates no domain that has a backup. Whether both are there is asked all the same: an event may have been
        // told while nobody was connected.
        self.keep.check(&self.link).await?;
        Ok(false)
    }

    async fn go_on(&self) -> Result<bool> {
        end::resume(&self.link).await
    }

    async fn let_go(&self, _: &[String]) -> Result<bool> {
        let Some(held) = now(&self.keep.held) else { return Ok(false) };
        Ok(end::end_backup(&self.link, &held.mark).await? == Some(true))
    }
}
