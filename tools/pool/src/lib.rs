//! The host's side of a template (docs/pool.md): machines of one image that are ready before they are asked for.
//!
//! ```text
//!   Template::start --> Template --fork--> Starting --> Ready --assign--> Running --> its end
//!                                                         |
//!                                                         +-- dropped: it ends
//! ```
//!
//! Nothing here needs a thread or a runtime: each of them is a descriptor that can be polled, and what is called without a
//! patience comes back at once. Machines are children of this process, so do not wait for children as such (`waitpid(-1)`).

#![forbid(unsafe_code)]

mod child;
mod machine;
mod policy;
mod template;
mod wait;

pub use lightv_api::template::{Assignment, Refusal};

pub use self::child::Exit;
pub use self::machine::{AssignError, MachineError, News, Progress, Ready, Running, Starting};
pub use self::policy::{Bounds, Policy};
pub use self::template::{Options, Template, TemplateError, TemplateEvent};
