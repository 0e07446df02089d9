//! `fctools_metrics FILE`: each line of a metrics file, decoded by fctools 0.6.

use fctools::extension::metrics::Metrics;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("no file")?;
    let text = std::fs::read_to_string(path)?;
    for line in text.lines() {
        let metrics: Metrics = serde_json::from_str(line)?;
        println!(
            "writes {} exits {}",
            metrics.block.write_count, metrics.vcpu.exit_mmio_write
        );
    }
    println!("done");
    Ok(())
}
