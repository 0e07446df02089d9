//! `lightv pool`: microVMs that the host agent keeps ready.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lightv_api::agent::pool::{Pool, PoolSpec, RefillSpec};

use super::{show, show_json};
use crate::agent::{self, AgentError};
use crate::failure::Failure;
use crate::table::Table;

/// Keep microVMs of an image ready, so that a start takes less than a millisecond
///
/// The host agent (lightv serve) keeps them. Between --min and --max their number follows demand.
#[derive(Debug, Parser)]
#[command(
    subcommand_required = true,
    after_help = "\
Examples:
  lightv pool set web --min 4 --max 64     make a pool, or change it
  lightv pool ls                           ready, wanted, served and missed
  lightv pool rm web                       end what is ready; what runs goes on"
)]
pub(crate) struct PoolArgs {
    #[command(subcommand)]
    command: PoolCommand,
}

#[derive(Debug, Subcommand)]
enum PoolCommand {
    /// Make a pool of an image, or change its bounds
    Set {
        /// Name of an image of the agent
        image: String,
        /// Kept ready at the least: 0–4096
        #[arg(long, value_name = "N", default_value_t = 1)]
        min: u32,
        /// Kept ready at the most: 1–4096
        #[arg(long, value_name = "N", default_value_t = 16)]
        max: u32,
        /// Made ready at the same time: 1–64
        #[arg(long, value_name = "N", default_value_t = 1)]
        parallel: u32,
    },
    /// List pools
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Take pools away
    Rm {
        /// Names of their images
        #[arg(required = true)]
        images: Vec<String>,
    },
}

/// Carries it out.
pub(crate) fn run(args: &PoolArgs) -> Result<ExitCode, Failure> {
    let client = agent::client();
    match &args.command {
        PoolCommand::Set {
            image,
            min,
            max,
            parallel,
        } => {
            let spec = PoolSpec {
                min: *min,
                max: *max,
                refill: RefillSpec {
                    parallel: *parallel,
                },
            };
            let put = client.put(&format!("/pools/{image}"), &spec);
            put.map_err(AgentError::from)?;
            Ok(ExitCode::SUCCESS)
        }
        PoolCommand::Ls { json } => {
            let pools: Vec<Pool> = client.get("/pools").map_err(AgentError::from)?;
            if *json {
                return show_json(&pools);
            }
            list(&pools)
        }
        PoolCommand::Rm { images } => agent::delete_each("/pools", images),
    }
}

fn list(pools: &[Pool]) -> Result<ExitCode, Failure> {
    let mut table = Table::new(&[
        "IMAGE", ">READY", ">WANTED", ">COMING", ">MIN", ">MAX", ">SERVED", ">MISSED", "FAULT",
    ]);
    for pool in pools {
        table.row([
            pool.image.clone(),
            pool.ready.to_string(),
            pool.target.to_string(),
            pool.starting.to_string(),
            pool.min.to_string(),
            pool.max.to_string(),
            pool.served.to_string(),
            pool.missed.to_string(),
            pool.fault.clone().unwrap_or_default(),
        ]);
    }
    show(|out| table.write(out))
}
