import XCTest

/// Three hosts: a guest on one, shadows on the two others. Its disk is part of the epochs.
class FanOutTestCase: DisksTestCase {
    override class var hostCount: Int { 3 }

    /// Not protected, on host A: brought back there when an earlier test has left it elsewhere.
    func guestOnHostA() throws -> LedgerGuest {
        let guest = try runningGuest()
        for host in try hosts.members where try hosts.service(host).pid == nil {
            try hosts.service(host).start()
            try hosts.waitForService(host)
        }
        if guest.home != .a {
            if try hosts.status(guest.home, guest.name)?.role == "primary" { try guest.unprotect() }
            // What it ran on here last may be newer than what it went on from.
            try protect(guest, ["hostA"], "--discard-stale")
            let swapped = try hosts.shadowVirt(guest.home, "swap", guest.name)
            try require(swapped.succeeded, "swap back: \(swapped.summary)")
            try guest.follow(to: .a, mayRepeat: 0)
        }
        if let status = try hosts.status(.a, guest.name), status.role == "primary", status.state != "failed_over" { try guest.unprotect() }
        return guest
    }

    func protect(_ guest: LedgerGuest, _ hosts: [String], interval: String = "20ms", _ more: String...) throws {
        let words = hosts.flatMap { ["--to", $0] }
        let result = try self.hosts.run(guest.home, [TwoHosts.binary, "protect", guest.name, "--no-policy", "--interval", interval] + words + more, limit: 60)
        let service = try self.hosts.service(guest.home)
        try require(result.succeeded, "protect: \(result.summary); service: \(service.logText.suffix(1500))")
        try waitForShadows(guest, Set(hosts.map { String($0.prefix { $0 != ":" }) }))
    }

    /// Waits until the guest has exactly these shadows, all of which follow.
    func waitForShadows(_ guest: LedgerGuest, _ peers: Set<String>, limit: Double = 20) throws {
        var seen = ""
        let hosts = try hosts
        try waitUntil("\(guest.name) on \(guest.home.name) has followers on \(peers.sorted()) (seen: \(seen); service: \(hosts.service(guest.home).logText.suffix(1500)))", limit: limit) {
            let shadows = (try? hosts.status(guest.home, guest.name))?.shadows ?? []
            seen = shadows.map { "\($0.peer) \($0.state) \($0.reason)" }.joined(separator: ", ")
            return Set(shadows.map(\.peer)) == peers && shadows.allSatisfy { $0.state == "protected" }
        }
    }

    func shadow(_ guest: LedgerGuest, _ peer: String) throws -> Status.Shadow {
        try XCTUnwrap(hosts.status(guest.home, guest.name)?.shadows?.first { $0.peer == peer }, "a shadow on \(peer)")
    }
}
