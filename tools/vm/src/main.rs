//! USB tests inside a virtual machine, against virtual sticks: `cargo xtask vm-test` boots it and runs this.
//!
//! A test is a line in [`TESTS`]: a name and a function that says what went wrong. Each begins by plugging in what it needs
//! anew, so none depends on another. Exit codes: 0 all passed, 1 some failed, 2 there is nothing to test on.

mod bench;
mod boot;
mod container;
mod count;
mod data;
mod enumerate;
mod fleet;
mod long;
mod mapped;
mod owner;
mod owners;
mod readme;
mod reset;
mod rights;
mod selftest;
mod sizes;
mod speed;
mod unplug;
#[path = "../../../benches/usb_peer.rs"]
mod usb_peer;
mod wire;

use std::process::ExitCode;
use std::time::Instant;

use bench::Bench;

/// Nothing, or what was expected and what was found.
type Verdict = Result<(), String>;
type Test = fn(&mut Bench) -> Verdict;

/// A check that fails with its own text.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}
pub(crate) use ensure;

const TESTS: &[(&str, Test)] = &[
    (
        "enumerate::unbooted_sticks_have_ports_of_their_own",
        enumerate::unbooted_sticks_have_ports_of_their_own,
    ),
    ("enumerate::lsusb_shows_a_stick", enumerate::lsusb_shows_a_stick),
    ("enumerate::firmware_boots_on_the_same_port", enumerate::firmware_boots_on_the_same_port),
    ("enumerate::lsusb_shows_a_booted_stick", enumerate::lsusb_shows_a_booted_stick),
    ("enumerate::half_an_image_is_forgotten_at_reset", enumerate::half_an_image_is_forgotten_at_reset),
    ("enumerate::second_claim_is_refused", enumerate::second_claim_is_refused),
    ("data::ping_and_capabilities", data::ping_and_capabilities),
    ("data::answers_in_pieces_of_one_packet", data::answers_in_pieces_of_one_packet),
    ("data::payloads_around_the_packet_size", data::payloads_around_the_packet_size),
    ("data::large_payloads", data::large_payloads),
    ("data::zero_length_packet_means_nothing", data::zero_length_packet_means_nothing),
    ("data::cancelled_reads_lose_nothing", data::cancelled_reads_lose_nothing),
    ("data::reset_request_brings_the_boot_rom_back", data::reset_request_brings_the_boot_rom_back),
    ("unplug::killed_emulator_is_gone_at_once", unplug::killed_emulator_is_gone_at_once),
    ("unplug::pulled_stick_is_gone_and_comes_back", unplug::pulled_stick_is_gone_and_comes_back),
    ("unplug::pulled_in_the_middle_of_the_firmware", unplug::pulled_in_the_middle_of_the_firmware),
    ("reset::usb_reset_and_power", reset::usb_reset_and_power),
    ("reset::stick_of_nobody_is_reset_first", reset::stick_of_nobody_is_reset_first),
    ("reset::watch_tells_arrivals_by_port", reset::watch_tells_arrivals_by_port),
    ("selftest::a_virtual_stick_on_usb_proves_nothing", selftest::a_virtual_stick_on_usb_proves_nothing),
    ("rights::users_may_open_with_the_rule_alone", rights::users_may_open_with_the_rule_alone),
    ("readme::commands_of_the_readme_work", readme::commands_of_the_readme_work),
    ("sizes::around_a_packet", sizes::around_a_packet),
    ("sizes::around_a_packet_with_zero_length_ones", sizes::around_a_packet_with_zero_length_ones),
    ("sizes::around_a_packet_at_high_speed", sizes::around_a_packet_at_high_speed),
    ("sizes::around_a_mebibyte", sizes::around_a_mebibyte),
    ("unplug::pulled_in_each_stage_of_a_job", unplug::pulled_in_each_stage_of_a_job),
    ("owners::two_race_for_one_boot", owners::two_race_for_one_boot),
    ("owners::killed_while_it_sends_the_firmware", owners::killed_while_it_sends_the_firmware),
    ("owners::killed_while_it_sends_a_tensor", owners::killed_while_it_sends_a_tensor),
    ("owners::left_booted_without_a_watchdog", owners::left_booted_without_a_watchdog),
    ("container::io_uring_refused_by_a_filter", container::io_uring_refused_by_a_filter),
    ("container::as_in_a_container", container::as_in_a_container),
    ("owners::stopped_while_others_infer", owners::stopped_while_others_infer),
    ("fleet::driver_boots_and_answers", fleet::driver_boots_and_answers),
    ("fleet::every_model_answers", fleet::every_model_answers),
    ("boot::all_boot_side_by_side", boot::all_boot_side_by_side),
    ("boot::firmware_that_does_not_start_is_sent_again", boot::firmware_that_does_not_start_is_sent_again),
    ("fleet::all_sticks_answer_alike", fleet::all_sticks_answer_alike),
    ("fleet::pulled_stick_costs_no_answer", fleet::pulled_stick_costs_no_answer),
    ("mapped::buffers_are_mapped_and_answers_right", mapped::buffers_are_mapped_and_answers_right),
    ("mapped::answers_outlive_their_stick", mapped::answers_outlive_their_stick),
    ("mapped::exhausted_memory_falls_back_and_says_so", mapped::exhausted_memory_falls_back_and_says_so),
    ("speed::driver_against_libusb", speed::driver_against_libusb),
    ("speed::idle_sticks_sleep", speed::idle_sticks_sleep),
    ("fleet::stick_of_another_process_is_refused", fleet::stick_of_another_process_is_refused),
];

/// Which tests, behind which face (`""`: any), and why the run of all leaves them out.
const ONLY_WHEN_NAMED: &[((&str, &str), &str)] = &[
    (("speed::", ""), "it measures"),
    (
        ("selftest::", "vhci"),
        "it takes two minutes where the emulator shares the one CPU, and runs behind xHCI",
    ),
];

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, bus, address] = &wanted[..]
        && flag == "--open"
    {
        println!("{}", rights::open_for_parent(bus, address));
        return ExitCode::SUCCESS;
    }
    match wanted.split_first() {
        Some((flag, words)) if flag == "--own" => return owner::main(words),
        Some((flag, words)) if flag == "--without-io-uring" => {
            return container::exec_without_io_uring(words);
        }
        _ => {}
    }
    let mut bench = match Bench::open() {
        Ok(bench) => bench,
        Err(why) => {
            println!("vm-test: {why}");
            return ExitCode::from(2);
        }
    };
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, test) in TESTS {
        if wanted.is_empty()
            && let Some((_, why)) = ONLY_WHEN_NAMED
                .iter()
                .find(|((part, face), _)| name.starts_with(part) && ["", &bench.face].contains(face))
        {
            println!("SKIP  {name}: {why}; `cargo xtask vm-test {} {name}` runs it", bench.face);
            continue;
        }
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        bench.notes.clear();
        let start = Instant::now();
        let verdict = test(&mut bench);
        let seconds = start.elapsed().as_secs_f64();
        match &verdict {
            Ok(()) => println!("PASS  {name}  {seconds:.2} s"),
            Err(why) => println!("FAIL  {name}  {seconds:.2} s\n      {why}"),
        }
        for note in &bench.notes {
            println!("      {note}");
        }
        match verdict {
            Ok(()) => passed += 1,
            Err(_) => failed.push(*name),
        }
    }
    println!("vm-test: {} face: {passed} passed, {} failed", bench.face, failed.len());
    if failed.is_empty() && passed > 0 { ExitCode::SUCCESS } else { ExitCode::from(1) }
}
