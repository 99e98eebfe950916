//! Addresses for a container, all or none.

use std::collections::BTreeSet;

use thiserror::Error;
use weft_api::types::Network;
use weft_api::{CallError, Cidr, Client, ContainerId};

use crate::AddressSpec;

/// Why a container did not get its addresses.
#[derive(Debug, Error)]
pub enum ObtainError {
    /// The router refused, or is not there.
    #[error("{wanted}: {source}")]
    Call {
        /// The address that was asked for, as typed.
        wanted: AddressSpec,
        /// What the router says.
        source: CallError,
    },
    /// There is no pool to allocate from.
    #[error(
        "{0} cannot be had: address allocation is switched off, so name each address as A.B.C.D/N"
    )]
    NoAllocation(AddressSpec),
}

/// The addresses of one container, and which of them it did not hold before.
#[derive(Debug)]
pub(crate) struct Obtained<'a> {
    client: &'a Client,
    id: &'a ContainerId,
    before: BTreeSet<Cidr>,
    /// In the order asked for, without repetition.
    pub(crate) all: Vec<Cidr>,
}

impl<'a> Obtained<'a> {
    /// Notes what the container holds already.
    pub(crate) async fn begin(client: &'a Client, id: &'a ContainerId) -> Result<Self, CallError> {
        let before = client.addresses(id).await?;
        Ok(Self {
            client,
            id,
            before: before.into_iter().collect(),
            all: Vec::new(),
        })
    }

    /// Allocates or claims each address; none at all means one of each default subnet.
    pub(crate) async fn obtain(
        &mut self,
        specs: &[AddressSpec],
        network: &Network,
    ) -> Result<(), ObtainError> {
        for wanted in or_default(specs).iter().copied() {
            let failed = |source| ObtainError::Call { wanted, source };
            match wanted {
                AddressSpec::Exact(cidr) => {
                    let cidr = self.client.claim(self.id, cidr).await;
                    self.add(cidr.map_err(failed)?);
                }
                AddressSpec::Subnet(subnet) => {
                    let cidr = self.client.allocate(self.id, Some(subnet)).await;
                    self.add(cidr.map_err(failed)?);
                }
                AddressSpec::DefaultSubnet if network.pool.is_none() => {
                    return Err(ObtainError::NoAllocation(wanted));
                }
                AddressSpec::DefaultSubnet => {
                    for subnet in network.default_subnets() {
                        let cidr = self.client.allocate(self.id, Some(subnet)).await;
                        self.add(cidr.map_err(failed)?);
                    }
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, cidr: Cidr) {
        if !self.all.contains(&cidr) {
            self.all.push(cidr);
        }
    }

    /// The addresses of `all` that the container did not hold before.
    pub(crate) fn fresh(&self) -> Vec<Cidr> {
        let fresh = |cidr: &&Cidr| !self.before.contains(*cidr);
        self.all.iter().filter(fresh).copied().collect()
    }

    /// Frees what was not held before: also an address that was on its way to us when we stopped
    /// waiting for it. What cannot be freed stays; the router shows it under the container's id.
    pub(crate) async fn give_back(&self) {
        let held = self.client.addresses(self.id).await;
        let held = held.unwrap_or_else(|_| self.fresh());
        for cidr in held.iter().filter(|cidr| !self.before.contains(*cidr)) {
            let _ = self.client.free(self.id, cidr.addr()).await;
        }
    }
}

/// What was asked for; one address of each default subnet if nothing was.
pub(crate) fn or_default(specs: &[AddressSpec]) -> &[AddressSpec] {
    if specs.is_empty() {
        return &[AddressSpec::DefaultSubnet];
    }
    specs
}
