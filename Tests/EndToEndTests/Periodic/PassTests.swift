import Foundation
import Glibc
import XCTest

/// The engine `periodic` with the ledger guest, which looks at its memory and its disk: epochs from background snapshots are as whole as any.
final class PassTests: DisksTestCase {
    private static let interval = "1s"
    /// What may run a second time after a failover: the interval, a pass, and what a busy machine adds.
    private static let ticksRepeated = Int(4 * LedgerGuest.ticksPerSecond)

    private func protect(_ guest: LedgerGuest) throws {
        try guest.protect(interval: Self.interval, "--engine", "periodic", "--discard-stale")
        try hosts.waitForState(guest.home, guest.name, ["protected"], limit: 20)
    }

    /// Protected by passes, whatever the test before left.
    private func passGuest() throws -> LedgerGuest {
        let guest = try unprotectedGuest()
        try protect(guest)
        return guest
    }

    private func epoch(_ guest: LedgerGuest) throws -> Int { try hosts.status(guest.home, guest.name)?.committed ?? 0 }

    private func worker(_ guest: LedgerGuest) throws -> pid_t { try XCTUnwrap(hosts.service(guest.home).workers.first, "no worker") }

    /// Waits until QEMU sends a pass, and a little longer.
    private func waitForPass(_ guest: LedgerGuest) throws {
        let qemu = try XCTUnwrap(hosts.qemu(guest.home, guest.name))
        try waitUntil("QEMU sends a pass", limit: 10, every: 0.001) { Processes.threads(of: qemu).contains { $0.hasPrefix("bg_snapshot") || $0.hasPrefix("mig/snapshot") } }
    }

    // MARK: Failover, swap

    func testFailovers() throws {
        var repeated: [Int] = []
        for _ in 0..<6 {
            let guest = try passGuest()
            pauseAtRandom(0.1...3)
            try guest.killQEMU()
            try guest.followToOther(mayRepeat: Self.ticksRepeated)
            try guest.waitForTicks(50)
            repeated = try guest.checkBooks().handOvers.map(\.repeatedTicks)
        }
        let guest = try runningGuest()
        try guest.lookAtEverything()
        try guest.checkBooks()
        try guest.checkNeverTwice()
        report("periodic, failover: outage \(guest.outages.inMilliseconds), ticks repeated at most \(repeated.max() ?? -1)")
    }

    func testSwaps() throws {
        var before = 0
        for round in 0..<4 {
            let guest = try passGuest()
            before = round == 0 ? guest.outages.count : before
            pauseAtRandom(0.1...2)
            try guest.swap()
            try guest.waitForTicks(50)
        }
        let guest = try runningGuest()
        try guest.lookAtEverything()
        try guest.checkBooks()
        try guest.checkNeverTwice()
        report("periodic, swap: outage \(Array(guest.outages.dropFirst(before)).inMilliseconds)")
    }

    // MARK: Passes that break

    /// A stream that breaks would leave the guest's memory write-protected: somebody reads it to its end.
    func testWorkerKilledInAPass() throws {
        let guest = try passGuest()
        for _ in 0..<3 {
            let worker = try worker(guest)
            try waitForPass(guest)
            kill(worker, SIGKILL)
            try guest.waitForTicks(250, limit: 10)
            try hosts.waitForState(guest.home, guest.name, ["protected"], limit: 20)
        }
        try guest.checkBooks()
    }

    /// Nobody is left to read it. The next service takes the write protection off.
    func testServiceAndWorkerKilledInAPass() throws {
        let guest = try passGuest()
        let service = try hosts.service(guest.home)
        let mark = guest.serial.mark
        for _ in 0..<3 {
            let processes = [try XCTUnwrap(service.pid), try worker(guest)]
            try waitForPass(guest)
            for process in processes { kill(process, SIGKILL) }
            try guest.waitForTicks(500, limit: 20)
            try hosts.waitForService(guest.home)
            try hosts.waitForState(guest.home, guest.name, ["protected"], limit: 20)
        }
        try guest.lookAtEverything()
        try guest.checkBooks()
        report("periodic, service and worker killed in a pass: silence at most \(String(format: "%.0f", guest.serial.largestGap(since: mark) * 1000)) ms")
    }

    func testServiceKilledInAPass() throws {
        let guest = try passGuest()
        let service = try hosts.service(guest.home)
        for _ in 0..<3 {
            let process = try XCTUnwrap(service.pid)
            try waitForPass(guest)
            kill(process, SIGKILL)
            try guest.waitForTicks(250, limit: 10)
            try hosts.waitForService(guest.home)
            try hosts.waitForState(guest.home, guest.name, ["protected"], limit: 20)
        }
        try guest.checkBooks()
    }

    /// Without libvirt no pass can be ordered, and one under way can't be proved; afterwards they go on.
    func testLibvirtdKilledInAPass() throws {
        let guest = try passGuest()
        let mark = guest.serial.mark
        for _ in 0..<2 {
            try waitForPass(guest)
            try hosts.hosts("libvirtd-kill", guest.home.rawValue)
            try guest.waitForTicks(500, limit: 10)
            try hosts.hosts("libvirtd-start", guest.home.rawValue)
            let before = try epoch(guest)
            try waitUntil("passes go on", limit: 40) { try epoch(guest) > before }
        }
        report("periodic, libvirtd killed in a pass: silence at most \(String(format: "%.0f", guest.serial.largestGap(since: mark) * 1000)) ms")
        try guest.killQEMU()
        try guest.followToOther(mayRepeat: Self.ticksRepeated)
        try guest.waitForTicks(250)
        try guest.checkBooks()
    }

    // MARK: The user

    func testSuspendAndResume() throws {
        let guest = try passGuest()
        for _ in 0..<3 {
            pauseAtRandom(0.1...1.2)
            try suspend(guest)
            let mark = guest.serial.mark
            sleep(3)
            XCTAssertEqual(guest.serial.mark, mark, "A pass resumed the guest that its user had suspended")
            try require(try hosts.virsh(guest.home, "resume", guest.name).succeeded, "virsh resume")
            try guest.waitForTicks(50)
            let before = try epoch(guest)
            try waitUntil("passes go on", limit: 10) { try epoch(guest) > before }
        }
        try guest.checkBooks()
    }

    /// One that falls into a pass's few milliseconds (many, on a busy machine) stops nothing, and leaves no trace: then once more.
    private func suspend(_ guest: LedgerGuest) throws {
        for attempt in 1...3 {
            try require(try hosts.virsh(guest.home, "suspend", guest.name).succeeded, "virsh suspend")
            if (try? hosts.waitForState(guest.home, guest.name, ["suspended"], limit: 3)) != nil { return }
            report("periodic: suspend \(attempt) met a pass and did not hold")
        }
        throw TestFailure("\(guest.name) could not be suspended")
    }

    func testUnprotectInAPass() throws {
        let guest = try passGuest()
        try waitForPass(guest)
        try guest.unprotect()
        try guest.waitForTicks(250)
        let capabilities = try hosts.monitor(guest.home, guest.name, "query-migrate-capabilities")
        XCTAssertTrue(capabilities.contains(#"{"capability":"background-snapshot","state":false}"#), capabilities)
        // What a left-over capability would turn into something else.
        let image = "/var/lib/libvirt/images/state"
        try require(try hosts.virsh(guest.home, "save", guest.name, image, limit: 60).succeeded, "virsh save")
        try require(try hosts.virsh(guest.home, "restore", image, limit: 60).succeeded, "virsh restore")
        try guest.waitForTicks(50)
    }

    // MARK: The network

    func testCableCutInAPass() throws {
        let guest = try passGuest()
        for _ in 0..<2 {
            try waitForPass(guest)
            try hosts.hosts("cut")
            try guest.waitForTicks(500, limit: 10)
            try hosts.hosts("join")
            let before = try epoch(guest)
            try waitUntil("epochs go on", limit: 40) { try epoch(guest) > before }
        }
        try guest.killQEMU()
        try guest.followToOther(mayRepeat: Self.ticksRepeated)
        try guest.lookAtEverything()
        try guest.checkBooks()
    }
}
