import Foundation
import XCTest

/// What must not be overwritten, or cannot be replicated, is refused with the reason and the way out; the guest goes on untouched.
final class DiskRefusalTests: DisksTestCase {
    private func assertRefused(_ result: CommandResult, _ parts: String..., file: StaticString = #filePath, line: UInt = #line) {
        XCTAssertEqual(result.status, 1, result.summary, file: file, line: line)
        for part in parts { XCTAssertTrue(result.err.contains(part), "'\(part)' is not in: \(result.summary)", file: file, line: line) }
    }

    func testVolumeThatNobodyKnows() throws {
        let guest = try freshDiskGuest()
        let stranger = Data("not yours".utf8) + Data(count: Self.diskBytes - 9)
        try stranger.write(to: URL(fileURLWithPath: image(.b)))
        assertRefused(try guest.tryToProtect(), "\(Self.images)/ledger.img exists on hostB", "nothing there knows it as a replica", "--discard-stale")
        XCTAssertEqual(try Data(contentsOf: URL(fileURLWithPath: image(.b))), stranger, "it is as it was")
        XCTAssertNil(try hosts.domainState(.b, guest.name))
        try guest.protect("--discard-stale")
        try guest.waitUntilWholeAgain()
        try failOver(guest)
        try assertInOrder(guest)
    }

    func testMissingPool() throws {
        let guest = try unprotectedGuest()
        let hosts = try hosts
        let other = guest.home.other
        for words in [["pool-destroy", "default"], ["pool-undefine", "default"]] {
            let result = try hosts.run(other, ["virsh", "-q"] + words)
            try require(result.succeeded, result.summary)
        }
        assertRefused(try guest.tryToProtect(), "\(other.name) has no storage pool default", "--pool")
        try hosts.defineDefaultPools()
        // An inactive one is started.
        try require(try hosts.virsh(other, "pool-destroy", "default").succeeded, "pool-destroy")
        try guest.protect()
        try guest.waitUntilWholeAgain()
        try guest.checkBooks()
    }

    func testAnotherPool() throws {
        let guest = try freshDiskGuest()
        let folder = "/var/lib/libvirt/fast"
        try FileManager.default.createDirectory(atPath: hosts.root(.b) + folder, withIntermediateDirectories: true)
        try hosts.definePool(.b, "fast", folder)
        assertRefused(try guest.tryToProtect(["--pool", "nosuchpool"]), "hostB has no storage pool nosuchpool", "fast")
        try guest.protect("--pool", "fast")
        XCTAssertTrue(try replica(of: guest).hasSuffix("\(folder)/ledger.img"))
        XCTAssertFalse(FileManager.default.fileExists(atPath: try image(.b)))
        try failOver(guest)
        // On the way back the former disk is taken, though its pool is another.
        try guest.waitForTicks(25)
        try guest.protect()
        XCTAssertEqual(try replica(of: guest), try image(.a))
        try guest.waitUntilWholeAgain()
        try failOver(guest)
        try assertInOrder(guest)
    }

    /// A guest of the shadow's host on a replica would destroy it.
    func testStartingAnotherDomainOnTheReplica() throws {
        let guest = try protectedGuest()
        try guest.waitUntilWholeAgain()
        let hosts = try hosts
        let other = guest.home.other
        let path = try String(replica(of: guest).dropFirst(hosts.root(other).count))
        let made = try runCommand([TwoHosts.tests + "/Guests/domain.sh", "thief", "DISK=\(path)"], limit: 10)
        let xml = hosts.folder + "/thief.xml"
        try made.out.write(toFile: xml, atomically: true, encoding: .utf8)
        for _ in 1...3 {
            let started = try hosts.virsh(other, "create", xml)
            XCTAssertFalse(started.succeeded, "a replica was booted from")
            XCTAssertTrue(started.err.contains("lock"), started.summary)
        }
        // Nor by the guest's own name.
        let own = try hosts.virsh(other, "start", guest.name)
        XCTAssertFalse(own.succeeded, own.summary)
        try guest.waitUntilWholeAgain()
        try failOver(guest)
        try assertInOrder(guest)
    }

    func testVolumeOfAnotherDomain() throws {
        let guest = try freshDiskGuest()
        let hosts = try hosts
        try Data(count: Self.diskBytes).write(to: URL(fileURLWithPath: image(.b)))
        let made = try runCommand([TwoHosts.tests + "/Guests/domain.sh", "owner", "DISK=\(Self.images)/ledger.img"], limit: 10)
        let xml = hosts.folder + "/owner.xml"
        try made.out.write(toFile: xml, atomically: true, encoding: .utf8)
        try require(try hosts.virsh(.b, "define", xml).succeeded, "virsh define owner")
        for options in [[], ["--discard-stale"]] { assertRefused(try guest.tryToProtect(options), "belongs to domain owner") }
        try require(try hosts.virsh(.b, "undefine", "owner").succeeded, "virsh undefine owner")
    }

    /// The guest went on at its old host after it had been forced to start at the other: its disk there may hold what exists nowhere else.
    func testDiskThatRanOnAfterAForcedFailover() throws {
        let guest = try protectedGuest(on: .a)
        let hosts = try hosts
        defer { leaveDisorder() }
        try hosts.hosts("cut")
        try hosts.waitForState(.a, guest.name, ["degraded"], limit: 15)
        let forced = try hosts.shadowVirt(.b, "failover", guest.name, "--force")
        try require(forced.succeeded, forced.summary)
        try guest.followToOther(mayRepeat: .max)
        usleep(1_000_000)
        try hosts.hosts("join")
        try waitUntil("The stale copy on hostA stands still", limit: 20) { guest.serial.silence(.a) > 1 }
        try hosts.waitForState(.a, guest.name, ["failed_over"], limit: 10)
        assertRefused(try guest.tryToProtect(), "active on hostA")
        try require(try hosts.virsh(.a, "destroy", guest.name).succeeded, "virsh destroy")
        guest.passOver(.a)
        let before = try Data(contentsOf: URL(fileURLWithPath: image(.a)))
        assertRefused(try guest.tryToProtect(), "may hold what exists nowhere else", "--discard-stale")
        XCTAssertEqual(try Data(contentsOf: URL(fileURLWithPath: image(.a))), before, "it is as it was")
        try guest.protect("--discard-stale")
        try guest.waitUntilWholeAgain()
        let back = guest.serial.mark
        try failOver(guest)
        try guest.waitForTicks(500, limit: 45)
        try guest.checkBooks()
        XCTAssertLessThanOrEqual(guest.serial.changes(since: back).count, 1)
    }

    func testFormerDiskThatSomebodyWroteTo() throws {
        let guest = try protectedGuest()
        try guest.swap()
        try guest.waitForTicks(25)
        let file = try XCTUnwrap(FileHandle(forUpdatingAtPath: image(guest.home.other)))
        usleep(20_000)
        try file.seek(toOffset: 3 << 20)
        try file.write(contentsOf: Data([1, 2, 3]))
        try file.close()
        assertRefused(try guest.tryToProtect(), "it was written to at", "--discard-stale")
        try guest.protect("--discard-stale")
        try guest.waitUntilWholeAgain()
        try failOver(guest)
        try assertInOrder(guest)
    }

    func testMissingCDROMIsLeftEmpty() throws {
        let cdrom = "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='\(Self.images)/media.iso'/><target dev='hdc' bus='ide'/><readonly/></disk>"
        let guest = try freshDiskGuest(edit: { $0.replacingOccurrences(of: "<controller type='usb'", with: "\(cdrom)<controller type='usb'") }, prepare: {
            try Data(count: 1 << 20).write(to: URL(fileURLWithPath: image(.a, "media.iso")))
        })
        let mark = try hosts.service(.a).logMark
        try guest.protect()
        let log = try hosts.service(.a).logText(since: mark)
        XCTAssertTrue(log.contains("hostB lacks \(Self.images)/media.iso"), log)
        let doctor = try hosts.shadowVirt(.a, "doctor", guest.name, "--to", "hostB")
        XCTAssertTrue(doctor.out.contains("media.iso"), doctor.summary)
        try guest.swap()
        let xml = try hosts.virsh(.b, "dumpxml", guest.name).out
        XCTAssertTrue(xml.contains("device='cdrom'") && !xml.contains("media.iso"), xml)
        try assertInOrder(guest)
    }
}
