//! The sites of a profile as text: one line each, most time first.
//!
//! *Runs on:* every thread that formats a profile.

use super::profile::{Profile, SiteTotals};
use super::text::{Human, Plain};
use std::fmt;
use std::time::Duration;

/// The most sites that a text has.
const SHOWN: usize = 20;

impl fmt::Display for Profile {
    /// Writes a line for each of the 20 sites that took most time, and the sum of the others.
    ///
    /// ```text
    ///      8 × blocked/sleep         2.66 s in all,    390 ms at most   app::load (src/load.rs:17)
    /// ```
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sites = self.sites();
        if sites.is_empty() {
            return f.write_str("no stalls");
        }
        let (shown, others) = sites.split_at(sites.len().min(SHOWN));
        let mut lines: Vec<String> = shown.iter().map(ToString::to_string).collect();
        if !others.is_empty() {
            let total: Duration = others.iter().map(|site| site.total).sum();
            lines.push(format!("{} more, {} in all", others.len(), Human(total)));
        }
        f.write_str(&lines.join("\n"))
    }
}

impl fmt::Display for SiteTotals {
    /// Writes the number of stalls, the cause, the times, and the site and the span if there are
    /// any.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let site = self.site.as_ref().map(ToString::to_string);
        let site = site.as_deref().unwrap_or("no site");
        write!(
            f,
            "{:>6} × {:<18} {:>9} in all, {:>9} at most   {}",
            self.count,
            self.cause.as_str(),
            Human(self.total).to_string(),
            Human(self.longest).to_string(),
            Plain(site)
        )?;
        match &self.span {
            Some(span) => write!(f, ", in {}", Plain(span)),
            None => Ok(()),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::report::{Blocking, Cause, Phase, Site, example};

    #[test]
    fn a_profile_has_a_line_for_each_site() {
        let mut profile = Profile::default();
        assert_eq!(profile.to_string(), "no stalls");
        let mut stall = example();
        stall.phase = Phase::Ended;
        stall.cause = Cause::Blocked(Blocking::Sleep);
        for milliseconds in [100, 250] {
            stall.duration = Duration::from_millis(milliseconds);
            profile.add(&stall);
        }
        let text = "     2 × blocked/sleep         350 ms in all,    250 ms at most   no site, in \
                    request > get_user";
        assert_eq!(profile.to_string(), text);
        for number in 0..30 {
            stall.site = Some(Site {
                function: format!("app::f{number}"),
                file: None,
                line: None,
            });
            stall.duration = Duration::from_millis(10);
            profile.add(&stall);
        }
        let text = profile.to_string();
        assert_eq!(text.lines().count(), 21, "{text}");
        assert!(text.ends_with("\n11 more, 110 ms in all"), "{text}");
    }
}
