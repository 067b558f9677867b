import XCTest

/// One capture for two shadows: neither waits for the other, the fresher one takes over, and the other follows it from there.
final class FanOutTests: FanOutTestCase {
    /// The line to host C takes a fraction of what the guest writes.
    func testASlowShadowSlowsNobodyAndTheFreshOneTakesOver() throws {
        let guest = try guestOnHostA()
        let hosts = try hosts
        try protect(guest, ["hostB", "hostC"])
        try guest.waitForTicks(250, limit: 20)
        try hosts.hosts("slow", "C", "3mbit")
        let mark = guest.serial.mark
        let begin = try XCTUnwrap(hosts.status(.a, guest.name))
        var lags: [String: [Int]] = [:]
        for _ in 1...40 {
            usleep(100_000)
            for shadow in try hosts.status(.a, guest.name)?.shadows ?? [] { lags[shadow.peer, default: []].append(shadow.lagEpochs) }
        }
        let end = try XCTUnwrap(hosts.status(.a, guest.name))
        let (fast, slow) = (lags["hostB"] ?? [], lags["hostC"] ?? [])
        report("fan-out, C at 3 Mbit/s: lag in epochs B \(fast.map(Double.init).median) (most \(fast.max() ?? -1)), C \(slow.map(Double.init).median) (most \(slow.max() ?? -1)); "
            + "\(end.epoch - begin.epoch) epochs, interval \(end.intervalMs) ms, largest silence of the guest \(Int(guest.serial.largestGap(since: mark) * 1000)) ms")
        XCTAssertGreaterThan(slow.max() ?? 0, 20, "The line to C is slow")
        XCTAssertLessThan(fast.map(Double.init).median, 5, "B follows closely")
        XCTAssertEqual(end.intervalMs, 20, "nobody slows the capture")
        XCTAssertLessThan(guest.serial.largestGap(since: mark), 0.5)

        let log = hosts.service(.a).logMark
        try guest.killQEMU()
        try guest.follow(to: .b, mayRepeat: 40)
        try hosts.hosts("slow", "C")
        XCTAssertTrue(hosts.service(.a).logText(since: log).contains("failing over to hostB"), hosts.service(.a).logText(since: log))
        // The other one, from its new primary, without a word from anybody.
        try waitForShadows(guest, ["hostC"])
        let swapped = try hosts.shadowVirt(.b, "swap", guest.name, "--to", "hostC")
        try require(swapped.succeeded, "swap: \(swapped.summary)")
        try guest.follow(to: .c, mayRepeat: 0)
        try assertInOrder(guest)
        report("fan-out: outage \(guest.outages.inMilliseconds)")
    }

    /// Two shadows could become the guest, with nobody at the primary to say which: one does.
    func testOnlyOneShadowBecomesTheGuest() throws {
        let guest = try guestOnHostA()
        let hosts = try hosts
        try protect(guest, ["hostB", "hostC:25"])
        try guest.waitForTicks(250, limit: 20)
        // So that the numbers differ for certain: C holds a multiple of 25 epochs at best.
        try waitUntil("C is behind", limit: 10, every: 0.01) { (try shadow(guest, "hostC").lagEpochs) > 5 }
        try hosts.service(.a).stop(signal: SIGKILL)
        try guest.killQEMU()
        let stale = try hosts.shadowVirt(.c, "failover", guest.name)
        XCTAssertEqual(stale.status, 1, stale.summary)
        XCTAssertTrue(stale.err.contains("on hostB is fresher"), stale.summary)
        let taken = try hosts.shadowVirt(.b, "failover", guest.name)
        try require(taken.succeeded, "failover on B: \(taken.summary)")
        try guest.follow(to: .b, mayRepeat: 40)
        let second = try hosts.shadowVirt(.c, "failover", guest.name)
        XCTAssertEqual(second.status, 1, second.summary)
        // Unless hostB was quicker to make its own shadow there.
        XCTAssertTrue(["running on hostB", "runs on hostB", "holds no complete epoch yet"].contains { second.err.contains($0) }, second.summary)
        try waitForShadows(guest, ["hostC"])
        try assertInOrder(guest)
    }

    func testShadowsComeAndGo() throws {
        let guest = try guestOnHostA()
        let hosts = try hosts
        try guest.protect()
        let refused = try hosts.shadowVirt(.a, "unprotect", guest.name, "--from", "hostC")
        XCTAssertEqual(refused.status, 1, refused.summary)
        XCTAssertTrue(refused.err.contains("has no shadow on hostC"), refused.summary)
        // One that commits every tenth epoch only.
        let added = try hosts.shadowVirt(.a, "protect", guest.name, "--to", "hostC:10")
        try require(added.succeeded, "protect to a second host: \(added.summary); \(hosts.service(.a).logText.suffix(1500))")
        try waitForShadows(guest, ["hostB", "hostC"])
        var commits: Set<Int> = []
        for _ in 1...150 {
            commits.insert(try shadow(guest, "hostC").committed)
            if commits.count > 4 { break }
            usleep(50_000)
        }
        let steps = zip(commits.sorted().dropFirst(), commits.sorted()).map { $0 - $1 }
        XCTAssertGreaterThanOrEqual(steps.count, 3, "C commits")
        XCTAssertTrue(steps.allSatisfy { $0 >= 10 }, "every tenth: \(steps)")
        XCTAssertEqual(try hosts.status(.c, guest.name)?.role, "shadow")

        // A service that dies takes its shadow's memory along: it comes back by itself.
        let log = hosts.service(.a).logMark
        hosts.service(.c).kill()
        try waitUntil("C takes part again (\(hosts.service(.a).logText(since: log)))", limit: 30) { hosts.service(.a).logText(since: log).contains("hostC takes part again") }
        try waitForShadows(guest, ["hostB", "hostC"])

        let mark = guest.serial.mark
        let gone = try hosts.shadowVirt(.a, "unprotect", guest.name, "--from", "hostB")
        try require(gone.succeeded, "unprotect --from: \(gone.summary)")
        try waitForShadows(guest, ["hostC"], limit: 5)
        XCTAssertNil(try hosts.status(.b, guest.name), "nothing is left on B")
        XCTAssertNil(try hosts.domainState(.b, guest.name))
        XCTAssertLessThan(guest.serial.largestGap(since: mark), 0.5)
        try guest.waitForTicks(100)
        let swapped = try hosts.shadowVirt(.a, "swap", guest.name)
        try require(swapped.succeeded, "swap: \(swapped.summary)")
        try guest.follow(to: .c, mayRepeat: 0)
        try assertInOrder(guest)
    }
}
