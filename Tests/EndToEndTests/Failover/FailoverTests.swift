import XCTest

/// The primary's QEMU dies: the guest goes on at the other host.
final class FailoverTests: HostsTestCase {
    func testQEMUKilledAtRandomMoments() throws {
        let guest = try protectedGuest(on: .a)
        let times = rounds(10, thorough: 50)
        var epochsLost: [Int] = []
        for round in 1...times {
            pauseAtRandom(0.05...0.8)
            let from = guest.home
            let mark = try hosts.service(from).logMark
            try guest.killQEMU()
            do { try guest.followToOther(mayRepeat: .max) } catch { throw TestFailure("Round \(round), from \(from.name): \(error)") }
            try guest.waitForTicks(25)
            epochsLost.append(try epochs(lostBy: hosts.service(from).logText(since: mark)))
            try guest.protect()
            try guest.waitUntilProtected()
        }
        try guest.lookAtEverything()
        let check = try guest.checkBooks()
        let repeated = check.handOvers.map(\.repeatedTicks)
        report("failover: outage \(guest.outages.inMilliseconds); ticks repeated \(repeated); captured epochs lost \(epochsLost)")
        try guest.checkNeverTwice()
        XCTAssertEqual(check.handOvers.count, times)
        XCTAssertLessThanOrEqual(epochsLost.max() ?? 0, 1, "captured epochs lost")
        XCTAssertLessThanOrEqual(repeated.max() ?? 0, LedgerGuest.ticksOfAnEpoch, "ticks repeated: more than one epoch lost")
    }

    /// "failing over to hostB at epoch 123, 0 captured epochs lost"
    private func epochs(lostBy log: String) throws -> Int {
        let words = log.split(whereSeparator: { $0 == " " || $0 == "," || $0 == "\n" })
        guard let at = words.firstIndex(of: "captured"), at > 0, let count = Int(words[at - 1]) else { throw TestFailure("The service does not tell of its failover: \(log)") }
        return count
    }

    func testCommandIsRefusedWhileThePrimaryRuns() throws {
        let guest = try protectedGuest()
        let result = try hosts.shadowVirt(guest.home.other, "failover", guest.name)
        XCTAssertEqual(result.status, 1, result.summary)
        XCTAssertTrue(result.err.contains("is reachable and running on \(guest.home.name)"), result.summary)
        XCTAssertTrue(result.err.contains("shadow-virt swap \(guest.name)"), result.summary)
        try guest.waitForEpochs(5)
        try guest.checkNeverTwice()
    }

    func testCommandOnTheWrongHost() throws {
        let guest = try protectedGuest()
        let result = try hosts.shadowVirt(guest.home, "failover", guest.name)
        XCTAssertEqual(result.status, 1, result.summary)
        XCTAssertTrue(result.err.contains("is the primary's host of"), result.summary)
        try guest.waitForEpochs(5)
    }
}
