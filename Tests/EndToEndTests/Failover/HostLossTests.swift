import XCTest

/// A whole host goes, or cannot be reached: only an administrator can know whether the guest is dead there.
final class HostLossTests: HostsTestCase {
    func testHostLosesPower() throws {
        let guest = try protectedGuest(on: .a)
        let hosts = try hosts
        usleep(500_000)
        let lastThere = guest.serial.last(on: .a)!.tick
        try hosts.crash(.a)
        defer { leaveDisorder() }

        let refused = try hosts.shadowVirt(.b, "failover", guest.name)
        XCTAssertEqual(refused.status, 1, refused.summary)
        XCTAssertTrue(refused.err.contains("Whether \(guest.name) still runs on hostA cannot be known"), refused.summary)
        XCTAssertTrue(refused.err.contains("Power hostA off or make sure that the guest is dead, then use `--force`"), refused.summary)
        XCTAssertLessThan(refused.seconds, 30, "a refusal should not take that long")
        XCTAssertEqual(try hosts.domainState(.b, guest.name), "paused")

        let forced = try hosts.shadowVirt(.b, "failover", guest.name, "--force")
        XCTAssertEqual(forced.status, 0, forced.summary)
        XCTAssertTrue(forced.err.contains("--force"), "it says what it risks: \(forced.summary)")
        try guest.followToOther(mayRepeat: 25)
        report(String(format: "host lost: refusal after %.1f s, forced failover took %.1f s", refused.seconds, forced.seconds))
        XCTAssertEqual(try hosts.status(.b, guest.name)?.state, "failed_over")
        XCTAssertLessThan(lastThere - (guest.serial.ticks(since: 0).first { $0.host == .b }?.tick ?? 0), 50, "it went on from long ago")

        try hosts.boot(.a)
        // The stale copy must not run, now or a moment later.
        for _ in 1...6 {
            usleep(500_000)
            XCTAssertNotEqual(try hosts.domainState(.a, guest.name), "running")
        }
        try hosts.waitForState(.a, guest.name, ["failed_over"], limit: 15)
        try guest.checkBooks()
        try guest.checkNeverTwice()
        // And host A is good for a shadow again.
        try guest.protect()
        try guest.waitUntilWholeAgain()
        try guest.swap()
        try guest.waitForTicks(25)
        try guest.checkNeverTwice()
    }

    func testForcedFailoverWhileCutOff() throws {
        let guest = try protectedGuest(on: .a)
        let hosts = try hosts
        defer { leaveDisorder() }
        try hosts.hosts("cut")
        try hosts.waitForState(.a, guest.name, ["degraded"], limit: 15)
        let refused = try hosts.shadowVirt(.b, "failover", guest.name)
        XCTAssertEqual(refused.status, 1, refused.summary)
        XCTAssertTrue(refused.err.contains("cannot be known"), refused.summary)
        XCTAssertTrue(guest.isTicking, "it runs on where it was")
        // A new service there tries anew, in vain, under names that host B never hears of.
        hosts.service(.a).kill()
        usleep(500_000)
        try hosts.waitForService(.a)
        try hosts.waitForState(.a, guest.name, ["degraded"], limit: 20)

        let forced = try hosts.shadowVirt(.b, "failover", guest.name, "--force")
        XCTAssertEqual(forced.status, 0, forced.summary)
        try guest.followToOther(mayRepeat: .max)
        usleep(500_000)
        XCTAssertLessThan(guest.serial.silence(.a), 0.5, "cut off, host A cannot know")
        try hosts.hosts("join")
        let seconds = try waitUntil("The stale copy on hostA stands still", limit: 20) { guest.serial.silence(.a) > 1 }
        report(String(format: "stale copy suspended %.1f s after the cut was mended", seconds - 1))
        XCTAssertEqual(try hosts.domainState(.a, guest.name), "paused")
        try hosts.waitForState(.a, guest.name, ["failed_over"], limit: 10)
        XCTAssertTrue(hosts.service(.a).logText.contains("the copy here is suspended for good"), "an administrator is told")
        XCTAssertTrue(guest.isTicking)
        usleep(1_500_000)
        XCTAssertGreaterThan(guest.serial.silence(.a), 2, "it does not start again")
        // It stays so when host A's service is restarted.
        hosts.service(.a).kill()
        usleep(500_000)
        try hosts.waitForService(.a)
        try hosts.waitForState(.a, guest.name, ["failed_over"], limit: 10)
        usleep(1_000_000)
        XCTAssertGreaterThan(guest.serial.silence(.a), 3, "it does not start again with a new service")
        try guest.checkBooks()
    }

    /// QEMU dies while nobody can be reached: the guest waits for the network, and goes on then.
    func testQEMUDiesWhileCutOff() throws {
        let guest = try protectedGuest(on: .a)
        let hosts = try hosts
        try hosts.hosts("cut")
        usleep(3_000_000)
        try guest.killQEMU()
        usleep(7_000_000)
        XCTAssertEqual(guest.serial.mark, { usleep(300_000); return guest.serial.mark }(), "it runs nowhere")
        try hosts.hosts("join")
        let begin = Clock.seconds
        try guest.followToOther(mayRepeat: .max, limit: 30)
        report(String(format: "QEMU died in a cut: on the other host %.1f s after it was mended", Clock.seconds - begin))
        try guest.waitForTicks(250)
        try guest.checkBooks()
        try guest.checkNeverTwice()
    }

    func testForceWhileThePrimaryRuns() throws {
        let guest = try protectedGuest()
        let hosts = try hosts
        let target = guest.home.other
        let forced = try hosts.shadowVirt(target, "failover", guest.name, "--force")
        XCTAssertEqual(forced.status, 0, forced.summary)
        XCTAssertTrue(forced.err.contains("having it destroyed"), forced.summary)
        try guest.followToOther(mayRepeat: 250)
        try guest.waitForTicks(100)
        XCTAssertNotEqual(try hosts.domainState(target.other, guest.name), "running")
        try guest.checkBooks()
        try guest.checkNeverTwice()
        try guest.protect()
        try guest.waitUntilWholeAgain()
    }
}
