//! The agent: see the library.

fn main() -> ! {
    lightv_init::main()
}
