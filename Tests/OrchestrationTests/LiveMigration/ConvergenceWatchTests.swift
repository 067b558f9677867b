import XCTest
@testable import Orchestration

final class ConvergenceWatchTests: XCTestCase {
    private let mib: UInt64 = 1 << 20

    /// Passes of `passMs`, each from its own peak down to nothing, sampled five times a second. Returns when it was told first, milliseconds.
    private func run(passMs: Double, seconds: Double, peak: (UInt64) -> UInt64, throttle: (UInt64) -> Int64? = { _ in nil }) -> (told: Double?, watch: ConvergenceWatch) {
        var watch = ConvergenceWatch()
        var told: Double?
        for step in 0..<Int(seconds * 5) {
            let ms = Double(step) * 200
            let pass = UInt64(ms / passMs) + 1
            var sample = MigrationSample(elapsedMs: ms)
            sample.memoryTotal = 1024 * mib
            sample.pass = pass
            let part = 1 - (ms / passMs - Double(pass - 1))
            sample.memoryRemaining = UInt64(Double(peak(pass) * mib) * part)
            sample.dirtyBytesPerSecond = 1229 * mib
            sample.bandwidthBytesPerSecond = 110 * mib
            sample.throttlePercent = throttle(pass)
            if watch.note(sample), told == nil { told = ms }
        }
        return (told, watch)
    }

    func testTheSameRemainderOverAndOver() throws {
        let told = try XCTUnwrap(run(passMs: 700, seconds: 30) { _ in 800 }.told)
        XCTAssertGreaterThanOrEqual(told, ConvergenceWatch.leastMs)
        XCTAssertLessThan(told, 15_000)
    }

    func testLessWithEachPassIsProgress() {
        XCTAssertNil(run(passMs: 700, seconds: 30) { 800 * 9 / (9 + $0) }.told)
    }

    /// Four passes of a large guest take longer than the ten seconds.
    func testLongPassesAreWaitedFor() throws {
        let told = try XCTUnwrap(run(passMs: 20_000, seconds: 200) { _ in 800 }.told)
        XCTAssertGreaterThanOrEqual(told, 80_000)
    }

    func testTheFirstPassSaysNothing() {
        XCTAssertNil(run(passMs: 1_000_000, seconds: 100) { _ in 800 }.told)
    }

    func testAutoConvergeIsGivenTime() throws {
        let told = run(passMs: 700, seconds: 60, peak: { _ in 800 }, throttle: { min(99, 2 * Int64($0)) }).told
        XCTAssertGreaterThan(try XCTUnwrap(told), 30_000)
        XCTAssertNil(run(passMs: 700, seconds: 60, peak: { _ in 800 }, throttle: { min(98, Int64($0)) }).told)
    }

    func testTheComplaintNamesNumbersAndWays() {
        let watch = run(passMs: 1000, seconds: 20) { _ in 800 }.watch
        XCTAssertEqual(watch.complaint(postcopy: false, autoConverge: false),
                       "remaining 800.0MiB, dirty rate 1.2GiB/s, bandwidth 110.0MiB/s: does not converge; use a --downtime above 7272ms, --postcopy or --auto-converge")
        XCTAssertTrue(watch.complaint(postcopy: false, autoConverge: true).hasSuffix("use a --downtime above 7272ms or --postcopy"))
        XCTAssertTrue(ConvergenceWatch().complaint(postcopy: true, autoConverge: true).hasSuffix("use --downtime"))
    }

    func testTheLineOfProgress() {
        var sample = MigrationSample(elapsedMs: 0)
        XCTAssertEqual(sample.text, "Preparing")
        sample.diskTotal = 10
        XCTAssertEqual(sample.text, "Copying disks")
        (sample.memoryTotal, sample.memoryRemaining, sample.pass) = (1024 * mib, 500 * mib, 2)
        (sample.dirtyBytesPerSecond, sample.bandwidthBytesPerSecond, sample.throttlePercent) = (10 * mib, 110 * mib, 20)
        XCTAssertEqual(sample.text, "Copying memory (pass 2, 500.0MiB remaining, dirty rate 10.0MiB/s, bandwidth 110.0MiB/s, about 5s to go, guest slowed down by 20 %)")
        sample.dirtyBytesPerSecond = 110 * mib
        XCTAssertNil(sample.estimatedSeconds)
    }
}
