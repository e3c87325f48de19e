//! What came of a policy's tests, as values and as lines for people.

use core::fmt::Write;

/// What came of all tests of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TestReport {
    /// One for each test, in their order.
    pub tests: Vec<TestOutcome>,
}

impl TestReport {
    /// Values that were as expected. Each compared value counts as one: of a step sent many
    /// times, the decision is compared each time, all else after the last.
    pub fn passed(&self) -> u64 {
        self.tests.iter().map(|test| test.passed).sum()
    }

    /// Values that were not.
    pub fn failed(&self) -> u64 {
        self.tests.iter().map(|test| test.failures.len() as u64).sum()
    }
}

/// What came of one test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestOutcome {
    /// Its name, or its API's if it has none.
    pub name: String,
    /// Name of its source.
    pub source: String,
    /// Its line, from 1.
    pub line: usize,
    /// Values that were as expected.
    pub passed: u64,
    /// Values that were not. After the first step with one, the test ends.
    pub failures: Vec<Failure>,
}

/// One value that was not as expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Line of the step, from 1.
    pub line: usize,
    /// What was sent.
    pub send: String,
    /// Which of how many times.
    pub time: (u64, u64),
    /// What was compared: `decision`, `status`, `body` or the name of a header.
    pub what: String,
    /// What came.
    pub found: String,
    /// What should have come.
    pub expected: String,
}

/// A report as lines for people: each test, each failure with its line, and a summary.
pub fn render_report(report: &TestReport) -> String {
    let mut out = String::new();
    for test in &report.tests {
        // A `String` takes all that is written.
        let _ = render_test(test, &mut out);
    }
    if report.failed() > 0 {
        out.push('\n');
    }
    let _ = writeln!(out, "{} passed, {} failed", report.passed(), report.failed());
    out
}

fn render_test(test: &TestOutcome, out: &mut String) -> core::fmt::Result {
    let TestOutcome { name, source, line, passed, failures } = test;
    if failures.is_empty() {
        return writeln!(out, "ok    {name} ({source}:{line}), {passed} passed");
    }
    writeln!(out, "FAIL  {name} ({source}:{line}), {passed} passed, {} failed", failures.len())?;
    for failure in failures {
        let Failure { line, send, time: (time, times), what, found, expected } = failure;
        write!(out, "      {source}:{line}: {send}")?;
        if *times > 1 {
            write!(out, " ({time} of {times})")?;
        }
        writeln!(out)?;
        writeln!(out, "        {what}")?;
        writeln!(out, "          found     {found}")?;
        writeln!(out, "          expected  {expected}")?;
    }
    Ok(())
}
