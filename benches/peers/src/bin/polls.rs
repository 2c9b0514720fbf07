//! What each tool adds to a poll. To come.

fn main() {}
