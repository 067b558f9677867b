import Foundation
import Glibc
import XCTest

/// The engine `periodic` with a Linux guest under TCG, which needs no KVM: memory, devices, ext4, and a network card on the bridge between the hosts, as
/// clients on both hosts see it.
final class LinuxPassTests: XCTestCase {
    private static let interval = "1s"
    /// Emulated, a boot takes 3 s, and a minute on a machine that has other things to do.
    private static let bootLimit = 150.0
    private static let disk = "/var/lib/libvirt/images/linux.img"

    private struct Shared {
        var hosts: TwoHosts
        var guest: LinuxGuest
    }
    nonisolated(unsafe) private static var shared: Result<Shared, any Error>?

    override class func tearDown() {
        if case .success(let mine) = shared {
            for left in mine.hosts.down() { XCTFail("Left behind by \(self): \(left)") }
        }
        shared = nil
        super.tearDown()
    }

    override func tearDownWithError() throws {
        guard (testRun?.totalFailureCount ?? 0) > 0, let mine = try? Self.shared?.get() else { return }
        for host in Host.allCases {
            print("--- service on \(host.name) (last lines)\n\(mine.hosts.service(host).logText.split(separator: "\n").suffix(15).joined(separator: "\n"))")
            print("--- guest on \(host.name)\n\(mine.guest.lines(host).suffix(5).joined(separator: "\n"))")
        }
    }

    private var hosts: TwoHosts { get throws { try Self.setUpOnce().hosts } }

    private static func setUpOnce() throws -> Shared {
        if let shared { return try shared.get() }
        for tool in ["mkfs.ext4", "e2fsck"] where !TwoHosts.isInstalled(tool) { throw XCTSkip("no \(tool) (Debian: apt install e2fsprogs)") }
        guard TwoHosts.isInstalled("ping") else { throw XCTSkip("no ping (Debian: apt install iputils-ping)") }
        _ = try LinuxGuest.parts()
        let made = Result { () throws -> Shared in
            let hosts = try TwoHosts(withLedger: false)
            do {
                for host in Host.allCases {
                    let made = try hosts.virsh(host, "pool-create-as", "default", "dir", "--target", "/var/lib/libvirt/images")
                    try require(made.succeeded, "virsh pool-create-as: \(made.summary)")
                }
                return Shared(hosts: hosts, guest: try LinuxGuest(hosts))
            } catch {
                hosts.down()
                throw error
            }
        }
        shared = made
        return try made.get()
    }

    /// The guest, running, on whatever host, with its own disk or an empty one.
    private func runningGuest() throws -> LinuxGuest {
        let guest = try Self.setUpOnce().guest
        if guest.qemu == nil {
            try LinuxGuest.makeDisk(try hosts.root(.a) + Self.disk)
            try guest.boot(on: .a, type: "qemu", disk: Self.disk, withNetwork: true, limit: Self.bootLimit)
        }
        return guest
    }

    /// With an epoch on the other host.
    private func protectedGuest() throws -> LinuxGuest {
        let guest = try runningGuest()
        let status = try hosts.status(guest.home, guest.name)
        if status?.role != "primary" || status?.state == "failed_over" { try guest.protect(interval: Self.interval) }
        try hosts.waitForState(guest.home, guest.name, ["protected"], limit: 60)
        return guest
    }

    private func committed(_ guest: LinuxGuest) throws -> Int { try hosts.status(guest.home, guest.name)?.committed ?? 0 }

    /// On both hosts: for one of them the guest comes, for the other it goes away.
    private func clients<Client: NetworkClient>(_ make: (Host) throws -> Client) throws -> [Client] { try Host.allCases.map(make) }

    /// It has read all of its disk again, and found it as its memory has it.
    private func waitForCheck(_ guest: LinuxGuest) throws {
        let checks = try guest.checks(on: guest.home)
        try waitUntil("\(guest.name) reads all of its disk again (\(guest.lines(guest.home).suffix(3)))", limit: 90) { try guest.checks(on: guest.home) > checks }
    }

    private func milliseconds(_ seconds: [Double]) -> String { seconds.map { String(format: "%.0f", $0 * 1000) }.joined(separator: " and ") + " ms" }

    // MARK: The choice

    func testAutoChoosesPeriodicUnderTCG() throws {
        let guest = try runningGuest()
        if let status = try hosts.status(guest.home, guest.name), status.role == "primary", status.state != "failed_over" {
            let ended = try hosts.shadowVirt(guest.home, "unprotect", guest.name)
            try require(ended.succeeded, "unprotect: \(ended.summary)")
        }
        let refused = try hosts.shadowVirt(guest.home, "protect", guest.name, "--to", guest.home.other.name, "--engine", "continuous", "--no-policy")
        XCTAssertEqual(refused.status, 1, refused.summary)
        XCTAssertTrue(refused.err.contains("TCG"), refused.summary)
        _ = try protectedGuest()
        let status = try XCTUnwrap(hosts.status(guest.home, guest.name))
        XCTAssertEqual(status.engine, "periodic")
        XCTAssertTrue(status.engineReason?.contains("TCG") == true, status.engineReason ?? "no reason")
        let before = status.committed
        try waitUntil("epochs follow", limit: 30) { try committed(guest) >= before + 3 }
        let after = try XCTUnwrap(hosts.status(guest.home, guest.name))
        report("linux guest under TCG: pause \(String(format: "%.1f", after.pauseMsMedian)) ms, an epoch every \(String(format: "%.1f", 1 / max(after.epochsPerSecond, 0.001))) s")
    }

    // MARK: Swap

    /// There and back: a connection goes on, and the guest loses nothing.
    func testConnectionsGoOnInSwaps() throws {
        var guest = try protectedGuest()
        let pings = try clients { try PingClient(try hosts, on: $0) }
        let streams = try clients { try StreamClient(try hosts, on: $0) }
        for client in pings { try client.waitForAnswer(limit: 10) }
        for client in streams { try client.waitForNumbers(50, limit: 20) }
        for _ in 0..<2 {
            guest = try protectedGuest()
            let from = guest.home, begin = NetworkClient.now
            let result = try hosts.shadowVirt(from, "swap", guest.name)
            try require(result.succeeded, "swap on \(from.name): \(result.summary)")
            try guest.followToOther(limit: 30)
            for client in pings { try client.waitForAnswer(limit: 10) }
            for client in streams { try client.waitForNumbers(100, limit: 20) }
            try checkNothingLost(guest, from: from)
            let silences = try pings.map { try $0.longestSilence(since: begin) }
            report("linux guest, swap to \(guest.home.name): ping silent for \(milliseconds(silences.map(\.seconds))) from hostA and hostB, "
                + "\(silences[0].lost) and \(silences[1].lost) lost; TCP silent for \(milliseconds(try streams.map { try $0.longestSilence(since: begin) })), no number lost")
            try waitForCheck(guest)
        }
        for client in streams { XCTAssertTrue(client.isRunning, "The connection from \(client.host.name) has ended: \(client.text.suffix(300))") }
    }

    /// What both hosts wrote of its serial port is one text.
    private func checkNothingLost(_ guest: LinuxGuest, from: Host) throws {
        for kind in ["T", "W"] {
            let numbers = try guest.numbersAcross(from, guest.home, kind)
            for (number, next) in zip(numbers, numbers.dropFirst()) where next != number + 1 {
                XCTFail("`\(kind) \(next)` follows `\(kind) \(number)` in a swap to \(guest.home.name)")
            }
        }
    }

    // MARK: Failover

    /// There and back, and what was safe in an epoch is there.
    func testFailovers() throws {
        for _ in 0..<2 {
            let guest = try protectedGuest()
            let from = guest.home
            let pings = try clients { try PingClient(try hosts, on: $0) }
            let streams = try clients { try StreamClient(try hosts, on: $0) }
            for client in pings { try client.waitForAnswer(limit: 10) }
            for client in streams { try client.waitForNumbers(10, limit: 20) }
            // The next epoch may have been captured already; the one after it was not.
            let safe = (record: try XCTUnwrap(guest.written(on: from).last), tick: try XCTUnwrap(guest.tick(on: from)))
            let epoch = try committed(guest)
            try waitUntil("two epochs follow \(epoch)", limit: 60) { try committed(guest) >= epoch + 2 }
            usleep(UInt32.random(in: 0...1_500_000))
            let begin = NetworkClient.now
            try guest.killQEMU()
            let last = (record: try XCTUnwrap(guest.written(on: from).last), tick: try XCTUnwrap(guest.tick(on: from)))
            try guest.followToOther(limit: 30)
            for client in pings { try client.waitForAnswer(limit: 20) }
            let silences = try pings.map { try $0.longestSilence(since: begin - 0.5) }
            try guest.waitForRecords(10)
            let first = (record: try XCTUnwrap(guest.written(on: guest.home).first), tick: try XCTUnwrap(guest.firstTick(on: guest.home)))
            XCTAssertGreaterThan(first.record, safe.record, "Records of a committed epoch were lost")
            XCTAssertGreaterThan(first.tick, safe.tick, "Ticks of a committed epoch were lost")
            XCTAssertLessThanOrEqual(first.record, last.record + 1, "Records were skipped")
            for client in try clients({ try StreamClient(try hosts, on: $0) }) { try client.waitForNumbers(20, limit: 20) }
            try waitForCheck(guest)
            // What they read before is still right; whether they can go on is up to TCP, whose other end was set back.
            let alive = try streams.filter { try $0.numbers().last!.at > begin + silences[0].seconds + 1 }.count
            report("linux guest, failover to \(guest.home.name): ping silent for \(milliseconds(silences.map(\.seconds))) from hostA and hostB, \(silences[0].lost) and "
                + "\(silences[1].lost) lost; \(last.tick + 1 - first.tick) ticks of 100 ms and \(last.record + 1 - first.record) records a second time; "
                + "\(alive) of \(streams.count) connections went on")
        }
        let guest = try runningGuest()
        let image = LinuxDisk(path: try guest.image())
        try guest.shutDown(limit: Self.bootLimit)
        XCTAssertFalse(try image.needsRecovery())
        try image.checkClean()
        XCTAssertGreaterThanOrEqual(try image.lastRecord(), try XCTUnwrap(guest.written(on: guest.home).last))
    }
}
