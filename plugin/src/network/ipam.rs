//! The IPAM driver: subnets and addresses for Docker's networks, out of the router's ring.
//!
//! Each address is held in the ring under an id made for it alone (`docker:` and a random number), so
//! that two requests never share one, and dockerd, which knows an address only by itself when it gives
//! it back, is understood by looking its holder up.
//!
//! A network's gateway is no address of the ring unless somebody chose one. dockerd insists on one, but nothing
//! goes through it; it gets the subnet's own first address, which no container has, the same on every
//! host and without asking anybody.
//! IPv4 and IPv6 are alike in all of this.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use tokio::time::timeout;
use tracing::info;
use weft_api::{CallError, Cidr, Client, ContainerId};

use super::pool::{Pool, Space, network};
use super::protocol::{self, GivenAddress, ReleasePool, RequestAddress, RequestPool};
use super::{HOLDER_PREFIX, Plugin, PluginError, RESERVED_PREFIX, Role, SWARM_PREFIX};

/// How long a network takes to be made, at most: far more than dockerd needs between its calls.
const MAKING: Duration = Duration::from_secs(30);
/// What is left of a call's time when an address is given up, to say so.
const SPARE: Duration = Duration::from_millis(250);

impl Plugin {
    pub(super) async fn request_pool(
        &self,
        asked: RequestPool,
    ) -> Result<protocol::Pool, PluginError> {
        let space: Space = asked.address_space.parse()?;
        let subnet = match asked.pool.as_str() {
            "" => self.default_subnet(asked.v6).await?,
            text => text.parse().map_err(super::pool::PoolError::from)?,
        };
        let range = Some(asked.sub_pool.as_str()).filter(|text| !text.is_empty());
        let range = range.map(str::parse).transpose();
        let range = range.map_err(super::pool::PoolError::from)?;
        let pool = Pool::new(space, subnet, range, random()?)?;
        let pool_id = pool.to_string();
        self.begin_making(&pool_id);
        Ok(protocol::Pool {
            pool_id,
            pool: subnet.to_string(),
            data: protocol::Options::new(),
        })
    }

    /// Nothing was taken for a pool, so there is nothing to give back.
    pub(super) fn release_pool(&self, released: &ReleasePool) {
        if let Ok(mut fresh) = self.fresh.lock() {
            fresh.remove(&released.pool_id);
        }
    }

    pub(super) async fn request_address(
        &self,
        asked: RequestAddress,
    ) -> Result<GivenAddress, PluginError> {
        let pool: Pool = asked.pool_id.parse()?;
        let gateway = asked.is_gateway();
        let wanted = chosen(&asked.address)?;
        let addr = match wanted {
            Some(addr) if !pool.subnet.contains(addr) => {
                let pool = Box::new(pool);
                return Err(PluginError::Elsewhere { addr, pool });
            }
            None if gateway => network(pool.subnet),
            Some(addr) if gateway && addr == network(pool.subnet) => addr,
            Some(addr) if self.is_held_by_manager(&pool) => addr,
            Some(addr) => {
                let shared =
                    gateway || pool.space == Space::Global || self.is_being_made(&asked.pool_id);
                self.claim(&pool, addr, shared).await?;
                addr
            }
            None => self.allocate(&pool).await?,
        };
        Ok(GivenAddress {
            address: pool.with_prefix(addr),
            data: protocol::Options::new(),
        })
    }

    pub(super) async fn release_address(&self, asked: RequestAddress) -> Result<(), PluginError> {
        let pool: Pool = asked.pool_id.parse()?;
        let Some(addr) = chosen(&asked.address)? else {
            return Ok(());
        };
        if addr == network(pool.subnet) || self.is_held_by_manager(&pool) {
            return Ok(());
        }
        let router = self.router().await?;
        let holders = router.holders(addr).await?;
        for holder in holders.iter().filter(|id| is_ours(id)) {
            match router.free(holder, addr).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Any free address of a pool. That there is such a pool is said with each address, not when Docker
    /// asks for the pool: dockerd does that at its start too, when the router may be away.
    async fn allocate(&self, pool: &Pool) -> Result<IpAddr, PluginError> {
        let router = self.router().await?;
        let holder = Holder::new(router, prefix(pool, false))?;
        let limit = self.patience.saturating_sub(SPARE);
        let allocated = async {
            router.add_pool(pool.subnet).await?;
            router.allocate(&holder.id, Some(pool.range)).await
        };
        let no_address = |_| PluginError::NoAddress {
            range: pool.range.to_string(),
            limit,
        };
        let cidr = timeout(limit, allocated).await.map_err(no_address)??;
        holder.keep();
        Ok(cidr.addr())
    }

    /// Just this address. One that is set aside in the network on every host (`shared`) may be held by
    /// another host already.
    async fn claim(&self, pool: &Pool, addr: IpAddr, shared: bool) -> Result<(), PluginError> {
        let router = self.router().await?;
        let holder = Holder::new(router, prefix(pool, shared))?;
        let cidr = Cidr::new(addr, pool.subnet.prefix()).map_err(super::pool::PoolError::from)?;
        router.add_pool(pool.subnet).await?;
        match router.claim(&holder.id, cidr).await {
            Ok(_) => holder.keep(),
            Err(CallError::Refused {
                status: 409,
                refusal,
            }) if shared => {
                info!(%addr, why = refusal.error, "set aside already");
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Whether the addresses of a pool were asked for before, by the manager of a swarm: then a node asks
    /// for the one it was told, and has nothing to give back.
    fn is_held_by_manager(&self, pool: &Pool) -> bool {
        self.role == Role::Swarm && pool.space == Space::Local
    }

    async fn default_subnet(&self, v6: bool) -> Result<Cidr, PluginError> {
        let network = self.router().await?.network().await?;
        let mut subnets = network.default_subnets();
        let subnet = subnets.find(|subnet| subnet.addr().is_ipv6() == v6);
        subnet.ok_or(match v6 {
            true => PluginError::NoPool6,
            false => PluginError::NoPool,
        })
    }

    fn begin_making(&self, pool_id: &str) {
        if let Ok(mut fresh) = self.fresh.lock() {
            fresh.retain(|_, since| since.elapsed() < MAKING);
            fresh.insert(pool_id.to_owned(), Instant::now());
        }
    }

    fn is_being_made(&self, pool_id: &str) -> bool {
        let fresh = self.fresh.lock();
        let since = fresh.ok().and_then(|fresh| fresh.get(pool_id).copied());
        since.is_some_and(|since| since.elapsed() < MAKING)
    }

    /// A network is made: what is asked for in its subnet from here on is for containers.
    pub(super) fn end_making(&self, subnet: &str) {
        if let Ok(mut fresh) = self.fresh.lock() {
            let of_subnet = |id: &str| {
                id.parse()
                    .is_ok_and(|pool: Pool| pool.subnet.to_string() == subnet)
            };
            fresh.retain(|id, _| !of_subnet(id));
        }
    }
}

/// What the id begins with under which an address of a pool is held.
const fn prefix(pool: &Pool, shared: bool) -> &'static str {
    match pool.space {
        Space::Global => SWARM_PREFIX,
        Space::Local if shared => RESERVED_PREFIX,
        Space::Local => HOLDER_PREFIX,
    }
}

/// Whether an address is held for one of Docker's networks.
fn is_ours(id: &ContainerId) -> bool {
    let ours = [HOLDER_PREFIX, RESERVED_PREFIX, SWARM_PREFIX];
    ours.iter().any(|prefix| id.as_str().starts_with(prefix))
}

/// A new id to hold an address under. Unless it is kept, whatever was given to it meanwhile is freed:
/// also if the call's time is up while the router is still at it.
struct Holder<'a> {
    id: ContainerId,
    router: &'a Client,
    kept: bool,
}

impl<'a> Holder<'a> {
    fn new(router: &'a Client, prefix: &str) -> Result<Self, PluginError> {
        let mut number = [0; 8];
        getrandom::fill(&mut number)?;
        let id = format!("{prefix}{:016x}", u64::from_be_bytes(number));
        // Such an id is short and has no blanks.
        let id = ContainerId::new(id).unwrap_or_else(|_| ContainerId::external());
        Ok(Self {
            id,
            router,
            kept: false,
        })
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Holder<'_> {
    fn drop(&mut self) {
        if !self.kept {
            let (router, id) = (self.router.clone(), self.id.clone());
            // What cannot be freed shows in `weft status ipam`, until the next look at what Docker has.
            tokio::spawn(async move { router.free_all(&id).await });
        }
    }
}

/// The address named in a call, if one is. dockerd leaves the prefix length out.
fn chosen(text: &str) -> Result<Option<IpAddr>, PluginError> {
    let addr = text.split_once('/').map_or(text, |(addr, _)| addr);
    if addr.is_empty() {
        return Ok(None);
    }
    let parsed = addr.parse();
    parsed
        .map(Some)
        .map_err(|_| PluginError::Address(text.to_owned()))
}

fn random() -> Result<u32, PluginError> {
    let mut number = [0; 4];
    getrandom::fill(&mut number)?;
    Ok(u32::from_be_bytes(number))
}
