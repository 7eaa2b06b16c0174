//! A backend without pools: what is served stands in the configuration, and can be looked at.

use super::backend::{Backend, Change, Failure, NewUnit, Outcome, Source, Unit};
use crate::banner::ServedLun;
use crate::config::Config;
use crate::spec::Device;
use bdev::pool::control::{Against, Answer, Refusal, Request};

/// The configuration's units.
#[derive(Debug)]
pub struct Unpooled {
    target: String,
    units: Vec<Unit>,
}

impl Unpooled {
    /// What `config` serves, as `luns`.
    pub fn new(config: &Config, luns: &[ServedLun]) -> Unpooled {
        let target = config.target.iqn.as_str().to_owned();
        let unit = |lun: &ServedLun| Unit {
            target: target.clone(),
            lun: lun.number,
            source: Source::Configuration,
            volume: None,
            spec: lun.spec.clone(),
            bytes: lun.bytes,
            block_bytes: lun.block_bytes,
            physical_block_bytes: lun.physical_block_bytes,
            read_only: lun.read_only,
            removable: config.luns.iter().any(|known| known.number == lun.number && known.spec.removable),
            id: lun.id.0,
            name: lun.name.clone().unwrap_or_default(),
        };
        Unpooled { units: luns.iter().map(unit).collect(), target }
    }
}

fn no_pools<T>() -> Outcome<T> {
    let cure = "serve files for the time being: `pollux serve --lun file:PATH:SIZE`";
    Err(Failure::Refused(Refusal::new(Against::Invalid, "this version can't serve pools yet", cure)))
}

impl Backend for Unpooled {
    fn pools(&self) -> Vec<String> {
        Vec::new()
    }

    fn ask(&self, pool: &str, _: Request) -> Outcome<Answer> {
        let what = format!("there is no pool {pool}");
        Err(Failure::Refused(Refusal::new(
            Against::NotFound,
            what,
            "`pollux pool list` shows those that are there",
        )))
    }

    fn pool_create(&self, _: &str, _: &[Device]) -> Outcome<()> {
        no_pools()
    }

    fn pool_grow(&self, _: &str, _: &[Device]) -> Outcome<()> {
        no_pools()
    }

    fn pool_delete(&self, _: &str) -> Outcome<()> {
        no_pools()
    }

    fn targets(&self) -> Vec<String> {
        vec![self.target.clone()]
    }

    fn units(&self) -> Outcome<Vec<Unit>> {
        Ok(self.units.clone())
    }

    fn unit_add(&self, _: &NewUnit) -> Outcome<()> {
        no_pools()
    }

    fn unit_remove(&self, _: &str, _: u16) -> Outcome<()> {
        no_pools()
    }

    fn unit_sessions(&self, _: &str, _: u16) -> Outcome<u32> {
        // Nobody counts them here; units that are fixed can't be pulled from under anybody.
        Ok(0)
    }

    fn unit_changed(&self, _: &str, _: u16, _: Change) -> Outcome<()> {
        no_pools()
    }
}
