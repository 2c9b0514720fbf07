//! A crate with each fault that is looked for, and beside each its good twin.
#![crate_type = "lib"]

extern crate proc_macro;

/// Another crate's type.
///
/// ```
/// faulty::foreign();
/// ```
pub fn foreign(_: proc_macro::TokenStream) {}

/// It can be matched in full. See [`foreign`].
pub enum Open {
    A,
}

/// It is closed. See [`foreign`].
pub enum Closed {
    A,
}

/// It can be built by others. See [`foreign`].
pub struct Built {
    pub field: u8,
}

/// It can grow. See [`foreign`].
#[non_exhaustive]
pub struct Grows {
    pub field: u8,
}

/// It has a private field. See [`foreign`].
pub struct Private {
    pub field: u8,
    #[allow(dead_code)]
    hidden: u8,
}

/// No example.
///
/// ```text
/// This is none.
/// ```
pub fn bare() {}

/// Its method has an example.
#[non_exhaustive]
pub struct Method;

impl Method {
    /// ```
    /// faulty::Method::call();
    /// ```
    pub fn call() {}
}

/// A link to an item without an example is none: [`bare`].
pub fn misleading() {}
