import XCTest

/// The engine `periodic` with two shadows: the guest is read once for both, and each follows at its own pace.
final class PassFanOutTests: FanOutTestCase {
    /// A failover repeats what the guest did since its last pass: the interval, a pass, and what a busy machine adds.
    private static let ticksRepeated = Int(4 * LedgerGuest.ticksPerSecond)

    /// The line to host C takes a fraction of what the guest changes; then the guest's QEMU dies, C follows from B, and takes the guest over from there.
    func testASlowShadowSlowsNobodyAndTheFreshOneTakesOver() throws {
        let guest = try guestOnHostA()
        let hosts = try hosts
        try protect(guest, ["hostB", "hostC"], interval: "1s", "--engine", "periodic", "--discard-stale")
        XCTAssertEqual(try hosts.status(.a, guest.name)?.engine, "periodic")
        try hosts.hosts("slow", "C", "256kbit")
        let mark = guest.serial.mark
        var held: [String: [Int]] = [:]
        try waitUntil("B gets pass after pass, C does not (\(held))", limit: 60, every: 0.2) {
            for shadow in try hosts.status(.a, guest.name)?.shadows ?? [] { held[shadow.peer, default: []].append(shadow.committed) }
            return Set(held["hostB"] ?? []).count >= 6
        }
        let (fast, slow) = (Set(held["hostB"] ?? []).count, Set(held["hostC"] ?? []).count)
        report("periodic, two shadows, C at 256 kbit/s: B committed \(fast) passes, C \(slow) meanwhile; largest silence of the guest \(Int(guest.serial.largestGap(since: mark) * 1000)) ms")
        XCTAssertLessThan(slow, fast, "The line to C is slow")
        XCTAssertLessThan(guest.serial.largestGap(since: mark), 1)

        let log = hosts.service(.a).logMark
        try guest.killQEMU()
        try guest.follow(to: .b, mayRepeat: Self.ticksRepeated)
        try hosts.hosts("slow", "C")
        XCTAssertTrue(hosts.service(.a).logText(since: log).contains("failing over to hostB"), hosts.service(.a).logText(since: log))
        // The other one, from its new primary, without a word from anybody, and by passes again.
        try waitForShadows(guest, ["hostC"], limit: 40)
        XCTAssertEqual(try hosts.status(.b, guest.name)?.engine, "periodic")
        let swapped = try hosts.shadowVirt(.b, "swap", guest.name, "--to", "hostC")
        try require(swapped.succeeded, "swap: \(swapped.summary)")
        try guest.follow(to: .c, mayRepeat: 0)
        try assertInOrder(guest)
    }

    /// One joins, commits every third pass, loses its service, comes back, and the guest goes over to it; the one that is left behind follows.
    func testShadowsComeAndGo() throws {
        let guest = try guestOnHostA()
        let hosts = try hosts
        try protect(guest, ["hostB"], interval: "1s", "--engine", "periodic", "--discard-stale")
        let added = try hosts.shadowVirt(.a, "protect", guest.name, "--to", "hostC:3", "--discard-stale")
        try require(added.succeeded, "protect to a second host: \(added.summary); \(hosts.service(.a).logText.suffix(1500))")
        try waitForShadows(guest, ["hostB", "hostC"])
        var commits: Set<Int> = []
        try waitUntil("C commits (\(commits))", limit: 40, every: 0.1) {
            commits.insert(try shadow(guest, "hostC").committed)
            return commits.count > 3
        }
        let steps = zip(commits.sorted().dropFirst(), commits.sorted()).map { $0 - $1 }
        XCTAssertTrue(steps.allSatisfy { $0 >= 3 }, "every third: \(steps)")

        let log = hosts.service(.a).logMark
        hosts.service(.c).kill()
        try waitUntil("C takes part again (\(hosts.service(.a).logText(since: log)))", limit: 30) { hosts.service(.a).logText(since: log).contains("hostC takes part again") }
        try waitForShadows(guest, ["hostB", "hostC"])
        let mark = guest.serial.mark
        let swapped = try hosts.shadowVirt(.a, "swap", guest.name, "--to", "hostC")
        try require(swapped.succeeded, "swap: \(swapped.summary)")
        try guest.follow(to: .c, mayRepeat: 0)
        XCTAssertLessThan(guest.serial.largestGap(since: mark), 1)
        try waitForShadows(guest, ["hostB"], limit: 40)
        let gone = try hosts.shadowVirt(.c, "unprotect", guest.name)
        try require(gone.succeeded, "unprotect: \(gone.summary)")
        try assertInOrder(guest)
    }
}
