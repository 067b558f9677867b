import XCTest

/// `virsh suspend` and `resume` of a protected guest.
final class SuspendTests: HostsTestCase {
    func testSuspendHoldsOverManyIntervals() throws {
        let guest = try protectedGuest()
        let times = rounds(12, thorough: 40)
        var lost = 0, late = 0
        var latencies: [Double] = []
        for _ in 1...times {
            pauseAtRandom(0.05...0.4)
            let asked = Clock.seconds
            let result = try hosts.virsh(guest.home, "suspend", guest.name)
            try require(result.succeeded, "virsh suspend: \(result.summary)")
            // An epoch that undid it is seen and the suspend repeated: give it a second, then it must hold.
            let held = (try? waitUntil("it stands still", limit: 2) { guest.serial.silence(guest.home) > 0.3 }) != nil
            guard held else {
                // Inside an epoch, and nobody noticed.
                lost += 1
                _ = try hosts.virsh(guest.home, "resume", guest.name)
                try guest.waitUntilProtected()
                continue
            }
            let stood = guest.serial.last(on: guest.home)!
            latencies.append(stood.time - asked)
            if stood.time - asked > 0.5 { late += 1 }
            try hosts.waitForState(guest.home, guest.name, ["suspended"], limit: 5)
            usleep(1_000_000)  // 50 intervals
            XCTAssertEqual(guest.serial.last(on: guest.home)?.tick, stood.tick, "it ran on while it was suspended")
            XCTAssertEqual(try hosts.domainState(guest.home, guest.name), "paused")
            let resumed = try hosts.virsh(guest.home, "resume", guest.name)
            try require(resumed.succeeded, "virsh resume: \(resumed.summary)")
            try guest.waitForTicks(25)
            try guest.waitUntilProtected()
        }
        report("suspend: \(lost) of \(times) did not hold, \(late) took more than 0.5 s; last tick after the command began: \(latencies.inMilliseconds)")
        try guest.checkBooks()
        try guest.checkNeverTwice()
        // A suspend that falls into an epoch after libvirt has noticed its stop leaves no trace anywhere (SuspendWatch): some 4 in 100
        // at 20 ms. What must never happen is the opposite: a guest that stands still though its user resumed it.
        XCTAssertLessThanOrEqual(lost, times / 4, "suspends that did not hold")
    }
}
