import XCTest

/// QEMU is killed at random moments, and the guest goes on elsewhere with memory and disk of one instant.
final class DiskFailoverTests: DisksTestCase {
    private let times = rounds(15, thorough: 50)

    func testQEMUKilledAtRandomMoments() throws {
        let guest = try protectedGuest()
        var sent: [Int] = [], protectedAfter: [Double] = []
        for round in 1...times {
            pauseAtRandom(0.02...0.4)
            do { try failOver(guest) } catch { throw TestFailure("Round \(round), from \(guest.home.name): \(error)") }
            try guest.waitForTicks(25)
            let begin = Clock.seconds
            do { try guest.protect() } catch { throw TestFailure("Round \(round): \(error)") }
            try guest.waitUntilProtected()
            protectedAfter.append(Clock.seconds - begin)
            sent.append(try diskBytesSent(guest))
        }
        try guest.lookAtEverything()
        let check = try guest.checkBooks()
        try guest.checkNeverTwice()
        let repeated = check.handOvers.map(\.repeatedTicks)
        report("failover with a disk: outage \(guest.outages.inMilliseconds); ticks repeated \(repeated.map(Double.init).median) (median), \(repeated.max() ?? 0) (most); protected back after \(protectedAfter.inMilliseconds)")
        report("failover with a disk: of \(Self.diskBytes) bytes the way back sent \(sent.map(Double.init).median) (median), \(sent.max() ?? 0) (most)")
        XCTAssertEqual(check.handOvers.count, times)
        XCTAssertLessThanOrEqual(repeated.map(Double.init).median, Double(LedgerGuest.ticksOfAnEpoch), "more than one epoch lost")
        // What the guest writes lies in 512 KiB; the rest of the disk is the same on both sides.
        XCTAssertLessThan(sent.max() ?? 0, Self.diskBytes / 2, "the way back is a resync by difference")
    }

    /// After the last failover the image itself is whole, as the guest's own records have it.
    func testTheReplicaIsWhole() throws {
        let guest = try protectedGuest()
        for _ in 1...3 {
            pauseAtRandom(0.1...0.6)
            let tick = guest.serial.last?.tick ?? 0
            try failOver(guest)
            try guest.waitForTicks(50)
            let suspended = try hosts.virsh(guest.home, "suspend", guest.name)
            try require(suspended.succeeded, suspended.summary)
            usleep(200_000)
            let found = try LedgerDisk.check([image(guest.home)], tick: guest.serial.last?.tick)
            XCTAssertGreaterThan(found[0].lastTick ?? 0, tick - LedgerGuest.ticksOfAnEpoch)
            try hosts.virsh(guest.home, "resume", guest.name)
            try guest.waitForTicks(10)
            try guest.protect()
            try guest.waitUntilProtected()
        }
        try assertInOrder(guest)
    }
}
