import Foundation
import Glibc
import NBDServer
import XCTest

/// A Linux guest with ext4, whose fsync'ed writes must be there after its host's QEMU is killed at any moment.
final class LinuxGuestTests: XCTestCase {
    private var hosts: TwoHosts!

    override func tearDown() {
        for left in hosts?.down() ?? [] { XCTFail("Left behind: \(left)") }
        hosts = nil
    }

    private func needTools() throws {
        for tool in ["mkfs.ext4", "e2fsck", "dumpe2fs", "debugfs"] where !TwoHosts.isInstalled(tool) { throw XCTSkip("no \(tool) (Debian: apt install e2fsprogs)") }
    }

    private lazy var random: SeededGenerator = {
        let seed = ProcessInfo.processInfo.environment["E2E_SEED"].flatMap { UInt64($0) } ?? UInt64.random(in: 1...999_999)
        print("\(name): seed \(seed) (repeat with E2E_SEED=\(seed))")
        return SeededGenerator(seed: seed)
    }()
    private func pauseAtRandom(_ range: ClosedRange<Double>) { usleep(UInt32(Double.random(in: range, using: &random) * 1e6)) }

    // MARK: The disk's copy alone, under TCG

    private static let times = rounds(3, thorough: 4)
    /// Emulated, a boot takes 4 s, and a minute on a machine that has other things to do. After this long no further round begins.
    private static let enoughSeconds = 90.0
    private static let bootLimit = 150.0

    /// QEMU mirrors the disk as it does for a protected guest, into our NBD server. Every round goes on from the copy that the one before left.
    func testTheCopyHasEveryRecordThatWasSafe() throws {
        try needTools()
        _ = try LinuxGuest.parts()
        hosts = try TwoHosts(withServices: false)
        let guest = try LinuxGuest(hosts)
        var disk = hosts.folder + "/linux-0.img"
        try LinuxGuest.makeDisk(disk)
        let begin = Clock.seconds
        var printed = -1
        var copies: [String] = []
        while copies.count < 2 || copies.count < Self.times && Clock.seconds - begin < Self.enoughSeconds {
            let copy = hosts.folder + "/linux-\(copies.count + 1).img"
            try guest.boot(on: .a, type: "qemu", disk: disk, limit: Self.bootLimit)
            let found = try XCTUnwrap(guest.verified(on: .a))
            XCTAssertGreaterThanOrEqual(found, printed, "The guest has lost records that were safe")
            let mirrored = try mirrorAndKill(guest, into: copy)
            printed = try XCTUnwrap(guest.written(on: .a).last)
            let checks = try guest.checks(on: .a)
            let whole = try examine(copy, printed: printed)
            report("linux guest, copy \(copies.count + 1): \(printed - found) records written, \(mirrored) of them mirrored, read again \(checks) times; "
                + "told up to \(printed), in the copy up to \(whole); \(String(format: "%.0f", Clock.seconds - begin)) s so far")
            copies.append(copy)
            disk = copy
        }
        try guest.boot(on: .a, type: "qemu", disk: disk, limit: Self.bootLimit)
        XCTAssertGreaterThanOrEqual(try XCTUnwrap(guest.verified(on: .a)), printed)
        try guest.shutDown(limit: Self.bootLimit)
        XCTAssertFalse(try LinuxDisk(path: disk).needsRecovery())
        try LinuxDisk(path: disk).checkClean()
    }

    /// Kills QEMU at a random moment after the copy has become equal; returns how many records were written after that one.
    private func mirrorAndKill(_ guest: LinuxGuest, into copy: String) throws -> Int {
        let socket = copy + ".nbd", destination = copy + ".xml"
        try require(FileManager.default.createFile(atPath: copy, contents: nil) && truncate(copy, 64 << 20) == 0, "Cannot make \(copy)")
        let server = try NBDServer(path: socket, mode: 0o600, exports: [try FileExport(path: copy, name: "vda")])
        server.start()
        defer { server.stop() }
        try """
            <disk type='network' device='disk'><driver name='qemu' type='raw' discard='unmap'/>
              <source protocol='nbd' name='vda'><host transport='unix' socket='\(socket)'/></source></disk>
            """.write(toFile: destination, atomically: true, encoding: .utf8)
        let copying = try hosts.virsh(.a, "blockcopy", guest.name, "vda", "--xml", destination, "--granularity", "65536", "--synchronous-writes",
                                      "--transient-job", "--reuse-external")
        try require(copying.succeeded, "virsh blockcopy: \(copying.summary)")
        try waitUntil("the copy is equal", limit: 60) { try hosts.virsh(.a, "dumpxml", guest.name).out.contains("ready='yes'") }
        let before = try guest.written(on: .a).count
        try guest.waitForRecords(5)
        pauseAtRandom(0.1...2.5)
        try guest.killQEMU()
        // What the kernel holds of the dead QEMU's requests still arrives.
        try waitUntil("the server has noticed", limit: 10) { server.connectionCount == 0 }
        return try guest.written(on: .a).count - before
    }

    /// Looks at a copy of the copy, which the guest is to replay itself. Returns the last record in it.
    private func examine(_ copy: String, printed: Int) throws -> Int {
        let disk = LinuxDisk(path: copy + ".check")
        let copied = try runCommand(["cp", "--sparse=always", copy, disk.path], limit: 30)
        try require(copied.succeeded, copied.summary)
        defer { unlink(disk.path) }
        XCTAssertTrue(try disk.needsRecovery(), "The guest was killed, but its file system says that it was unmounted")
        try disk.replayJournal()
        try disk.checkClean()
        let last = try disk.lastRecord()
        XCTAssertGreaterThanOrEqual(last, printed, "Records that were safe are not in the copy")
        return last
    }

    // MARK: The whole guest, under KVM

    /// Ticks of 100 ms that may run a second time after a failover, at an epoch every 20 ms on a busy machine.
    private static let ticksRepeated = 2

    func testFailoversOfAGuestWithExt4() throws {
        try needTools()
        if let obstacle = TwoHosts.obstacle { throw XCTSkip("End-to-end tests skipped: \(obstacle)") }
        guard try LinuxGuest.runsUnderKVM(within: 20) else {
            throw XCTSkip("KVM on this machine does not run Linux (within 20 s; a nested one may run code without paging only), and the engine `continuous` needs KVM: "
                + "under TCG failovers of a Linux guest are for the engine `periodic`")
        }
        hosts = try TwoHosts()
        for host in Host.allCases {
            let made = try hosts.virsh(host, "pool-create-as", "default", "dir", "--target", "/var/lib/libvirt/images")
            try require(made.succeeded, "virsh pool-create-as: \(made.summary)")
        }
        let disk = "/var/lib/libvirt/images/linux.img"
        try LinuxGuest.makeDisk(hosts.root(.a) + disk)
        let guest = try LinuxGuest(hosts)
        try guest.boot(on: .a, type: "kvm", disk: disk, limit: 60)
        for _ in 0..<3 {
            try guest.protect()
            try guest.waitForRecords(20)
            pauseAtRandom(0.2...3)
            try failOver(guest)
        }
        try guest.shutDown()
        let replica = LinuxDisk(path: try guest.image())
        try replica.replayJournal()
        try replica.checkClean()
        XCTAssertGreaterThanOrEqual(try replica.lastRecord(), try XCTUnwrap(guest.written(on: guest.home).last))
    }

    /// Its memory and disk are of one epoch: it goes on with the next record, and finds all before it on the disk.
    private func failOver(_ guest: LinuxGuest) throws {
        let from = guest.home
        try guest.killQEMU()
        let (tick, record) = (try XCTUnwrap(guest.tick(on: from)), try XCTUnwrap(guest.written(on: from).last))
        try guest.followToOther(limit: 30)
        try guest.waitForRecords(20)
        let (firstTick, firstRecord) = (try XCTUnwrap(guest.firstTick(on: guest.home)), try XCTUnwrap(guest.written(on: guest.home).first))
        XCTAssertGreaterThanOrEqual(firstTick, tick + 1 - Self.ticksRepeated)
        XCTAssertLessThanOrEqual(firstRecord, record + 1, "Records were skipped")
        let checks = try guest.checks(on: guest.home)
        try waitUntil("\(guest.name) reads all of its disk again", limit: 60) { try guest.checks(on: guest.home) > checks }
        report("linux guest, failover to \(guest.home.name): \(tick + 1 - firstTick) ticks of 100 ms and \(record + 1 - firstRecord) records written a second time")
    }
}
