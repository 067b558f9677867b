import Foundation
import XCTest

/// Live migration of a Linux guest, under TCG: what no shadow can be made of can be moved all the same.
final class LinuxMigrationTests: XCTestCase {
    private var hosts: TwoHosts!

    override func tearDown() {
        for left in hosts?.down() ?? [] { XCTFail("Left behind: \(left)") }
        hosts = nil
    }

    func testMovesUnderTCGWithAnExt4Disk() throws {
        for tool in ["mkfs.ext4", "e2fsck", "dumpe2fs", "debugfs"] where !TwoHosts.isInstalled(tool) { throw XCTSkip("no \(tool) (Debian: apt install e2fsprogs)") }
        _ = try LinuxGuest.parts()
        hosts = try TwoHosts()
        try hosts.defineDefaultPools()
        let disk = "/var/lib/libvirt/images/linux.img"
        try LinuxGuest.makeDisk(hosts.root(.a) + disk)
        let guest = try LinuxGuest(hosts)
        try guest.boot(on: .a, type: "qemu", disk: disk, limit: 150)
        try guest.waitForRecords(5, limit: 120)

        let dry = try hosts.shadowVirt(.a, "swap", guest.name, "--to", "hostB", "--dry-run")
        try require(dry.succeeded, dry.summary)
        XCTAssertTrue(dry.out.contains("Dirty rate:") && dry.out.contains("measured for 1 s"), "Pages are sampled, which works under TCG as well: \(dry.summary)")
        let moved = try hosts.shadowVirt(.a, "swap", guest.name, "--to", "hostB", limit: 180)
        try require(moved.succeeded, moved.summary)
        let (tick, record) = (try XCTUnwrap(guest.tick(on: .a)), try XCTUnwrap(guest.written(on: .a).last))
        try guest.followToOther(limit: 60)
        XCTAssertNil(try hosts.domainState(.a, guest.name))
        try guest.waitForRecords(10, limit: 120)
        XCTAssertGreaterThanOrEqual(try XCTUnwrap(guest.firstTick(on: .b)), tick, "It went back in time")
        XCTAssertEqual(try XCTUnwrap(guest.written(on: .b).first), record + 1, "It goes on with the next record")
        try guest.shutDown(limit: 150)
        let copy = LinuxDisk(path: hosts.root(.b) + disk)
        XCTAssertFalse(try copy.needsRecovery())
        try copy.checkClean()
        XCTAssertGreaterThanOrEqual(try copy.lastRecord(), try XCTUnwrap(guest.written(on: .b).last))
        report("live migration, Linux guest under TCG: \(moved.out.split(separator: "\n").first ?? ""); predicted: "
            + dry.out.split(separator: "\n").filter { $0.hasPrefix("Du") || $0.hasPrefix("Dirty") || $0.hasPrefix("To") }.joined(separator: ", "))
    }
}
