//! A page for `pullfs` and one for each of its commands: `clap_mangen`'s sections, and ours for what stands below help.

use std::io;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use pullfs_fs::options::table::TABLE;

use crate::document::see_also;
use crate::{NO_DATE, SOURCE};

/// File names and pages, of `command` and all below it that are not hidden.
pub(crate) fn pages(command: Command) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    collect(&command, &mut pages)?;
    Ok(pages)
}

fn collect(command: &Command, pages: &mut Vec<(String, Vec<u8>)>) -> io::Result<()> {
    let man = Man::new(command.clone()).date(NO_DATE).source(SOURCE).manual("pullfs");
    pages.push((man.get_filename(), page(command, &man)?));
    command.get_subcommands().filter(|command| !command.is_hide_set()).try_for_each(|command| collect(command, pages))
}

fn page(command: &Command, man: &Man) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let mut roff = Roff::new();
    let below = command.get_after_help().map(ToString::to_string);
    match (command.get_name(), below) {
        ("mount", _) => mount_options(&mut roff),
        (_, None) => {}
        (_, Some(text)) => {
            let (heading, text) = match text.strip_prefix("Exit codes: ") {
                Some(codes) => ("EXIT STATUS", codes),
                None => ("NOTES", text.as_str()),
            };
            roff.control("SH", [heading]).text([roman(text)]);
        }
    }
    see_also(&mut roff, command.get_display_name().unwrap_or_else(|| command.get_name()), "1");
    roff.to_writer(&mut page)?;
    Ok(page)
}

fn mount_options(roff: &mut Roff) {
    roff.control("SH", ["MOUNT OPTIONS"]);
    roff.text([
        roman("Behind "),
        bold("-o"),
        roman(", separated by commas; lists are joined by +. A comma in a value is "),
    ]);
    roff.text([roman("written with a backslash before it.")]);
    for option in TABLE {
        roff.control("TP", []).text([bold(option.usage)]).text([roman(option.text)]);
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Cli;

    fn all() -> Vec<(String, String)> {
        let pages = pages(Cli::command()).unwrap().into_iter();
        pages.map(|(name, page)| (name, String::from_utf8(page).unwrap())).collect()
    }

    #[test]
    fn each_command_has_a_page_and_is_on_that_of_pullfs() {
        let pages = all();
        let (_, first) = pages.iter().find(|(name, _)| name == "pullfs.1").unwrap();
        for command in Cli::command().get_subcommands() {
            let name = format!("pullfs-{}.1", command.get_name());
            let has_page = pages.iter().any(|(found, _)| *found == name);
            assert_eq!(has_page, !command.is_hide_set(), "{name}");
            let shown = first.contains(&format!("pullfs\\-{}(1)", command.get_name()));
            assert_eq!(shown, has_page, "{name}");
        }
        assert!(pages.iter().any(|(name, _)| name == "pullfs-checkpoint-create.1"));
        assert!(first.contains(".SH \"EXIT STATUS\"\n0 done;"), "{first}");
    }

    #[test]
    fn each_mount_option_is_on_the_page_of_mount() {
        let pages = all();
        let (_, page) = pages.iter().find(|(name, _)| name == "pullfs-mount.1").unwrap();
        let (_, options) = page.split_once("MOUNT OPTIONS").unwrap();
        for option in TABLE {
            let expected = Roff::new().control("TP", []).text([bold(option.usage)]).text([roman(option.text)]).render();
            // Without the preamble, which is two lines.
            let expected: Vec<&str> = expected.lines().skip(2).collect();
            assert!(options.contains(&expected.join("\n")), "{}\n{options}", option.usage);
        }
    }

    #[test]
    fn no_page_has_a_hidden_argument() {
        for (name, page) in all() {
            assert!(!page.contains("announce") && page.contains(".SH \"SEE ALSO\""), "{name}");
        }
    }
}
