import XCTest

/// Moving the guest on purpose: nothing is lost.
final class SwapTests: HostsTestCase {
    func testThereAndBackTenTimes() throws {
        let guest = try protectedGuest(on: .a)
        for round in 1...20 {
            pauseAtRandom(0.05...0.5)
            do { try guest.swap() } catch { throw TestFailure("Round \(round): \(error)") }
            try guest.waitForTicks(25)
            try guest.protect()
            try guest.waitUntilProtected()
        }
        try guest.lookAtEverything()
        let check = try guest.checkBooks()
        try guest.checkNeverTwice()
        XCTAssertEqual(check.handOvers.count, 20)
        report("swap: outage \(guest.outages.inMilliseconds)")
        // The command line must not grow with each hand-over.
        let arguments = hosts_qemuArguments(guest)
        XCTAssertLessThanOrEqual(arguments.filter { $0 == "-incoming" }.count, 1, "-incoming accumulates")
    }

    private func hosts_qemuArguments(_ guest: LedgerGuest) -> [String] { guest.hosts.qemu(guest.home, guest.name).map(Processes.arguments(of:)) ?? [] }

    func testRefusedWhenNotProtected() throws {
        let guest = try unprotectedGuest()
        let result = try hosts.shadowVirt(guest.home, "swap", guest.name)
        XCTAssertEqual(result.status, 1, result.summary)
        XCTAssertTrue(result.err.contains("not protected"), result.summary)
        try guest.waitForTicks(25)
    }
}
