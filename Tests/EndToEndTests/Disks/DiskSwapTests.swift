import Foundation
import XCTest

/// Planned moves with disks: nothing lost, nothing repeated, whatever the disks are made of.
final class DiskSwapTests: DisksTestCase {
    func testThereAndBack() throws {
        let guest = try freshDiskGuest()
        try guest.protect()
        try swapThereAndBack(guest, times: 5, "one disk")
    }

    func testTwoDisks() throws {
        let guest = try freshDiskGuest(keys: ["DATA=\(Self.images)/data.img"], prepare: {
            let path = try self.image(.a, "data.img")
            try require(FileManager.default.createFile(atPath: path, contents: Data(count: 8 << 20)), "Cannot make \(path)")
            try LedgerDisk.mark(path)
        })
        try guest.protect()
        XCTAssertEqual(try hosts.status(.a, guest.name)?.disks?.map(\.target), ["vda", "vdb"])
        XCTAssertEqual(try hosts.status(.a, guest.name)?.disks?.map(\.state), ["ready", "ready"])
        try swapThereAndBack(guest, times: 2, "two disks")
        for round in 1...5 {
            pauseAtRandom(0.05...0.5)
            do { try failOver(guest) } catch { throw TestFailure("Round \(round): \(error)") }
            try guest.waitForTicks(25)
            try guest.protect()
            try guest.waitUntilProtected()
        }
        try assertInOrder(guest, ticks: 3000)
        let suspended = try hosts.virsh(guest.home, "suspend", guest.name)
        try require(suspended.succeeded, suspended.summary)
        usleep(300_000)
        try LedgerDisk.check([image(guest.home), image(guest.home, "data.img")])
    }

    func testQcow2Source() throws {
        let (raw, qcow2) = ("type='raw'/><source file='\(Self.images)/ledger.img'", "type='qcow2'/><source file='\(Self.images)/ledger.qcow2'")
        let edit: (String) -> String = { $0.replacingOccurrences(of: raw, with: qcow2) }
        let guest = try freshDiskGuest(edit: edit, prepare: {
            let (raw, qcow2) = (try self.image(.a), try self.image(.a, "ledger.qcow2"))
            let made = try runCommand(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2], limit: 30)
            try require(made.succeeded, made.summary)
            try FileManager.default.removeItem(atPath: raw)
        })
        try guest.protect()
        let replica = try replica(of: guest)
        XCTAssertTrue(replica.hasSuffix("/ledger.raw"), replica)
        try guest.swap()
        let xml = try hosts.virsh(.b, "dumpxml", guest.name).out
        XCTAssertTrue(xml.contains("type='raw'") && xml.contains("ledger.raw") && !xml.contains("qcow2"), "on host B it runs from the raw replica: \(xml)")
        try assertInOrder(guest)
        // The persistent definition as well.
        let inactive = try hosts.virsh(.b, "dumpxml", guest.name, "--inactive").out
        XCTAssertTrue(inactive.contains("ledger.raw") && !inactive.contains("qcow2"), inactive)
        // The old qcow2 cannot be a replica; another volume takes its place.
        try guest.protect()
        try guest.waitUntilProtected()
        XCTAssertTrue(try self.replica(of: guest).hasSuffix(".raw"))
        try failOver(guest)
        try assertInOrder(guest, ticks: 3000)
    }

    private func swapThereAndBack(_ guest: LedgerGuest, times: Int, _ what: String) throws {
        var sent: [Int] = []
        for _ in 1...2 * times {
            try guest.waitUntilProtected()
            pauseAtRandom(0.05...0.3)
            try guest.swap()
            try guest.waitForTicks(25)
            try guest.protect()
            sent.append(try diskBytesSent(guest))
        }
        try guest.lookAtEverything()
        let check = try guest.checkBooks()
        try guest.checkNeverTwice()
        XCTAssertEqual(check.handOvers.map(\.repeatedTicks).max(), 0)
        XCTAssertEqual(check.handOvers.map(\.lostTicks).max(), 0)
        report("swap with \(what): outage \(guest.outages.inMilliseconds); disk bytes sent to come back \(sent)")
    }
}
