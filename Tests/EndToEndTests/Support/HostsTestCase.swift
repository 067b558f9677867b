import Foundation
import XCTest

/// Tests that share two hosts and one ledger guest: booted once a class, reused while they are in order, made anew when a test left them in disorder.
class HostsTestCase: XCTestCase {
    private struct Shared {
        var hosts: TwoHosts
        var guest: LedgerGuest?
    }
    nonisolated(unsafe) private static var shared: Result<Shared, any Error>?
    /// Reported with the class, not on a machine where nobody can repeat it.
    nonisolated(unsafe) private static var random = SeededGenerator(seed: 0)

    override class func setUp() {
        super.setUp()
        let seed = ProcessInfo.processInfo.environment["E2E_SEED"].flatMap { UInt64($0) } ?? UInt64.random(in: 1...999_999)
        random = SeededGenerator(seed: seed)
        print("\(self): seed \(seed) (repeat with E2E_SEED=\(seed))")
        shared = Result { Shared(hosts: try makeHosts()) }
    }

    /// Lines for every host's configuration.
    class var configuration: [String] { [] }
    /// How many hosts there are.
    class var hostCount: Int { 2 }
    /// Lines for the configuration of one host.
    class var ownLines: [Host: [String]] { [:] }

    private class func makeHosts() throws -> TwoHosts { try TwoHosts(configuration: configuration, count: hostCount, ownLines: ownLines) }

    override class func tearDown() {
        if case .success(let mine) = shared {
            mine.guest?.forget()
            for left in mine.hosts.down() { XCTFail("Left behind by \(self): \(left)") }
        }
        shared = nil
        super.tearDown()
    }

    var hosts: TwoHosts {
        get throws {
            guard let shared = Self.shared else { throw TestFailure("No hosts") }
            return try shared.get().hosts
        }
    }

    /// The guest, running; on `host` if that is said; protected to the other one.
    func protectedGuest(on host: Host? = nil) throws -> LedgerGuest {
        let guest = try runningGuest()
        let status = try hosts.status(guest.home, guest.name)
        if status?.role != "primary" || status?.state == "failed_over" { try guest.protect() }
        try guest.waitUntilProtected()
        if let host, guest.home != host {
            try guest.swap()
            try guest.protect()
        }
        try guest.waitUntilProtected()
        return guest
    }

    /// The guest, running, whether protected or not.
    func runningGuest() throws -> LedgerGuest {
        if let guest = try Self.shared?.get().guest, guest.isTicking, !Self.lastFailed { return guest }
        try freshHosts()
        let guest = try newGuest()
        try boot(guest)
        return guest
    }

    /// A guest that is not booted yet, in place of the one there was.
    func newGuest() throws -> LedgerGuest {
        let guest = try LedgerGuest(try hosts)
        Self.shared = .success(Shared(hosts: try hosts, guest: guest))
        return guest
    }

    /// Boots the class's guest on host A.
    func boot(_ guest: LedgerGuest) throws { try guest.boot(on: .a) }

    /// Unprotected, on host A.
    func unprotectedGuest() throws -> LedgerGuest {
        let guest = try runningGuest()
        if let status = try hosts.status(guest.home, guest.name), status.role == "primary", status.state != "failed_over" { try guest.unprotect() }
        return guest
    }

    /// Hosts that no guest was on yet.
    func freshHosts() throws { if try Self.lastFailed || Self.shared?.get().guest != nil { try renew() } }

    /// All from the start: hosts, services, and no guest.
    func renew() throws {
        guard let mine = try Self.shared?.get() else { return }
        mine.guest?.forget()
        for left in mine.hosts.down() { print("Left behind: \(left)") }
        Self.shared = Result { Shared(hosts: try Self.makeHosts()) }
        Self.lastFailed = false
        _ = try hosts
    }

    /// What this test leaves is of no use to the next.
    func leaveDisorder() { Self.lastFailed = true }

    /// Another guest in place of the one there is, booted on host A.
    func freshGuest(vcpus: Int) throws -> LedgerGuest {
        let old = try unprotectedGuest()
        old.remove()
        old.forget()
        let guest = try newGuest()
        try guest.boot(on: .a, vcpus: vcpus)
        return guest
    }

    // MARK: Failures

    nonisolated(unsafe) private static var lastFailed = false

    override func recordFailure(withDescription description: String, inFile filePath: String, atLine lineNumber: Int, expected: Bool) {
        Self.lastFailed = true
        super.recordFailure(withDescription: description, inFile: filePath, atLine: lineNumber, expected: expected)
    }

    override func tearDownWithError() throws {
        if (testRun?.totalFailureCount ?? 0) > 0, let mine = try? Self.shared?.get() {
            for host in mine.hosts.members { print("--- service on \(host.name) (last lines)\n\(mine.hosts.service(host).logText.split(separator: "\n").suffix(15).joined(separator: "\n"))") }
        }
    }

    // MARK: Chance

    /// Waits a random time.
    func pauseAtRandom(_ range: ClosedRange<Double>) { usleep(UInt32(random(range) * 1e6)) }
    func random(_ range: ClosedRange<Double>) -> Double { Double.random(in: range, using: &Self.random) }
}

/// How often something is done at a random moment: `usual` times, with E2E_THOROUGH=yes `thorough` times, which the suite has no time for.
func rounds(_ usual: Int, thorough: Int) -> Int { ProcessInfo.processInfo.environment["E2E_THOROUGH"] == "yes" ? thorough : usual }

/// Prints what was measured, one line that can be found.
func report(_ what: String) { print("MEASURED \(what)") }

extension [Double] {
    var median: Double { isEmpty ? .nan : sorted()[count / 2] }
    /// "median 87, max 120 ms (20)".
    var inMilliseconds: String { String(format: "median %.0f, max %.0f ms (%d)", median * 1000, (self.max() ?? .nan) * 1000, count) }
}
