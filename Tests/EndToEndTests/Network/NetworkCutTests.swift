import XCTest

/// The cable between the hosts is pulled.
final class NetworkCutTests: HostsTestCase {
    private static let ceilingMiB = 32
    override class var configuration: [String] { ["unsent_ceiling_mib = \(ceilingMiB)"] }

    func testCutForEightSeconds() throws {
        let guest = try protectedGuest()
        let hosts = try hosts
        let (home, other) = (guest.home, guest.home.other)
        let worker = try XCTUnwrap(hosts.service(home).workers.first)
        let before = Processes.residentMiB(worker)
        let mark = guest.serial.mark
        try hosts.hosts("cut")
        let begin = Clock.seconds
        var largest = before
        var degradedAfter: Double?
        var reason = ""
        while Clock.seconds - begin < 8 {
            usleep(100_000)
            largest = max(largest, Processes.residentMiB(hosts.service(home).workers.first ?? worker))
            if degradedAfter == nil, let status = try hosts.status(home, guest.name), status.state == "degraded" { (degradedAfter, reason) = (Clock.seconds - begin, status.reason) }
        }
        XCTAssertNotNil(degradedAfter, "`degraded` within 8 s")
        XCTAssertFalse(reason.isEmpty, "with a reason")
        XCTAssertLessThan(guest.serial.largestGap(since: mark), 1.2, "the guest runs on (intervals grow to a second at most)")
        // Two epochs may be under way beyond the ceiling.
        XCTAssertLessThan(largest, before + Double(Self.ceilingMiB) + 16, "the worker's memory is bounded")
        try hosts.hosts("join")
        let mended = try guest.waitUntilWholeAgain(limit: 15)
        // The interval comes down again.
        try waitUntil("the interval is 20 ms again", limit: 15) { try hosts.status(home, guest.name)?.intervalMs == 20 }
        report(String(format: "cut: degraded after %.1f s (%@), protected %.1f s after mending, worker %.0f MiB before and %.0f at most, largest silence of the guest %.0f ms",
                      degradedAfter ?? .nan, reason, mended, before, largest, guest.serial.largestGap(since: mark) * 1000))
        XCTAssertEqual(try hosts.domainState(other, guest.name), "paused")
        try guest.swap()
        try guest.waitForTicks(250)
        try guest.checkBooks()
        try guest.checkNeverTwice()
    }

    func testShortCutsAreBridged() throws {
        let guest = try protectedGuest()
        let mark = guest.serial.mark
        for _ in 1...5 {
            pauseAtRandom(0.2...0.8)
            try hosts.hosts("cut")
            pauseAtRandom(0.1...0.8)
            try hosts.hosts("join")
        }
        try guest.waitUntilWholeAgain()
        XCTAssertLessThan(guest.serial.largestGap(since: mark), 1.2)
        try guest.swap()
        try guest.waitForTicks(250)
        try guest.checkBooks()
        try guest.checkNeverTwice()
    }

    func testSwapIsRefusedWhileCut() throws {
        let guest = try protectedGuest()
        let hosts = try hosts
        try hosts.hosts("cut")
        usleep(300_000)
        let result = try hosts.shadowVirt(guest.home, "swap", guest.name, limit: 60)
        let silence = guest.serial.silence(guest.home)
        try hosts.hosts("join")
        XCTAssertEqual(result.status, 1, result.summary)
        XCTAssertLessThan(silence, 1.2, "it runs on")
        try guest.waitUntilWholeAgain(limit: 20)
        try guest.checkBooks()
        try guest.checkNeverTwice()
    }
}
