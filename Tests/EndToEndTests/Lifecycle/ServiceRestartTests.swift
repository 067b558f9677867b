import XCTest

/// The service is stopped and started as an update would.
final class ServiceRestartTests: HostsTestCase {
    func testGuestRunsOnWithoutUs() throws {
        let guest = try protectedGuest(on: .a)
        let hosts = try hosts
        let mark = guest.serial.mark
        try hosts.service(.a).stop()
        try guest.waitForTicks(50)
        // No trace in QEMU: a save by the administrator would otherwise hang.
        XCTAssertFalse(try hosts.monitor(.a, guest.name, "query-migrate-capabilities").contains("\"capability\":\"x-colo\",\"state\":true"))
        XCTAssertEqual(try hosts.domainState(.a, guest.name), "running")
        try hosts.service(.a).start()
        try guest.waitUntilWholeAgain()
        XCTAssertLessThan(guest.serial.largestGap(since: mark), 1)

        try hosts.service(.b).stop()
        try guest.waitForTicks(50)
        try hosts.waitForState(.a, guest.name, ["degraded"], limit: 15)
        try hosts.service(.b).start()
        try guest.waitUntilWholeAgain()
        try guest.swap()
        try guest.waitForTicks(100)
        try guest.checkBooks()
        try guest.checkNeverTwice()
    }

    /// Whoever of the two services ends and begins again: the shadow's QEMU, with the guest's memory in it, is there all the while.
    func testMemoryIsNotCopiedAgain() throws {
        let guest = try protectedGuest(on: .a)
        let hosts = try hosts
        let shadow = try XCTUnwrap(hosts.qemu(.b, guest.name))
        for (host, signal) in [(Host.a, SIGTERM), (.b, SIGTERM), (.a, SIGKILL), (.b, SIGKILL)] {
            try guest.waitForTicks(50)
            let log = hosts.service(.a).logMark
            try hosts.service(host).stop(signal: signal)
            try hosts.service(host).start()
            try guest.waitUntilWholeAgain()
            let text = hosts.service(.a).logText(since: log)
            XCTAssertTrue(text.contains("MiB of the guest's memory from before"), "\(host.name), signal \(signal): \(text)")
            XCTAssertEqual(hosts.qemu(.b, guest.name), shadow, "The shadow's QEMU goes on")
            report("resync after the end of \(host.name)'s service by signal \(signal): \((try hosts.status(.a, guest.name)?.bytesSent ?? 0) >> 10) KiB went over since")
        }
        // What was put together of old and new is the guest.
        try guest.killQEMU()
        try guest.follow(to: .b, mayRepeat: 40)
        try guest.waitForTicks(100)
        try guest.checkBooks()
        try guest.checkNeverTwice()
    }

    func testNothingIsLeftAtTheEnd() throws {
        let guest = try protectedGuest()
        let hosts = try hosts
        try guest.unprotect()
        try hosts.assertNoTraces(of: guest.name)
        XCTAssertNil(try hosts.domainState(guest.home.other, guest.name), "the shadow's domain")
        XCTAssertTrue(guest.isTicking)
        guest.remove()
        for host in Host.allCases { try hosts.service(host).stop() }
        for host in Host.allCases {
            let left = (try? FileManager.default.contentsOfDirectory(atPath: hosts.root(host) + "/run/shadow-virt")) ?? []
            XCTAssertEqual(left, [], "in /run/shadow-virt of \(host.name)")
            let workers = Processes.all.filter { Processes.isAlive($0) && Processes.arguments(of: $0).prefix(2) == [TwoHosts.binary, "worker"] && isOn(host, $0) }
            XCTAssertEqual(workers, [], "workers on \(host.name)")
        }
        leaveDisorder()
    }

    private func isOn(_ host: Host, _ pid: pid_t) -> Bool {
        guard let holder = FileManager.default.contents(atPath: (try? hosts.root(host)).map { $0 + "/holder" } ?? "").flatMap({ String(decoding: $0, as: UTF8.self).split(separator: " ").first }) else { return false }
        let mine = try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/\(holder)/ns/net")
        return mine != nil && mine == (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/\(pid)/ns/net"))
    }
}
