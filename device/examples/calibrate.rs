//! Prints predicted against published figures, with every figure left out once, and the constants that fit best.
//!
//! `cargo run -p ncs2-device --example calibrate -- [SEED]`

use ncs2_device::{Profile, calibrate};

fn main() -> ncs2::Result<()> {
    let seed = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(1);
    let profile = Profile::load("ncs2")?;
    println!("simulated; constants of profile {}, seed {seed}", profile.name);
    let left_out = calibrate::leave_one_out(&profile, seed)?;
    println!("{}", calibrate::table(&left_out));
    println!("fitted anew: {:#?}", calibrate::fit(&profile, seed)?);
    Ok(())
}
