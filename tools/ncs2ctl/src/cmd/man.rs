//! `ncs2ctl man`

use std::fs;
use std::io;
use std::path::Path;

use clap_mangen::Man;
use serde::Serialize;

use crate::failure::{Failure, Outcome, Result};
use crate::folders;
use crate::output::Output;

#[derive(Serialize)]
struct Body {
    #[serde(skip_serializing_if = "Option::is_none")]
    page: Option<String>,
    files: Vec<String>,
}

/// Prints the main page of `definition`, or writes a page for every command into `folder`.
pub fn man(output: &Output, definition: clap::Command, folder: Option<&Path>) -> Result<Outcome> {
    let Some(folder) = folder else {
        let page = render(definition)?;
        if output.is_json() {
            output.document(&Body { page: Some(page), files: Vec::new() })?;
        } else {
            output.text(&page)?;
        }
        return Ok(Outcome::Ok);
    };
    folders::make(folder)?;
    let mut files = Vec::new();
    let mut command = definition;
    command.build();
    write(command, "ncs2ctl", folder, &mut files)?;
    if output.is_json() {
        output.document(&Body { page: None, files })?;
    } else {
        output.remark(&format!("{} pages in {}", files.len(), folder.display()));
    }
    Ok(Outcome::Ok)
}

/// The page of `command` and those of the commands below it.
fn write(command: clap::Command, name: &str, folder: &Path, files: &mut Vec<String>) -> Result {
    for child in command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        write(child.clone(), &format!("{name}-{}", child.get_name()), folder, files)?;
    }
    let path = folder.join(format!("{name}.1"));
    // clap wants a name that lives as long as the program; there are a dozen of them, once.
    let page = render(command.name(name.to_owned().leak() as &'static str))?;
    fs::write(&path, page).map_err(|e| Failure::file(&path, "write", &e))?;
    files.push(path.display().to_string());
    Ok(())
}

fn render(command: clap::Command) -> Result<String> {
    let mut page = Vec::new();
    let rendered: io::Result<()> = Man::new(command).render(&mut page);
    rendered?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}
