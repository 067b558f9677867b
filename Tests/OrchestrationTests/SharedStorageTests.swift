import Foundation
import XCTest
@testable import Orchestration

final class SharedStorageTests: XCTestCase {
    func testFileSystems() {
        XCTAssertEqual(SharedStorage.fileSystem(magic: 0x6969) { nil }, "NFS")
        XCTAssertEqual(SharedStorage.fileSystem(magic: 0x00C3_6400) { nil }, "CephFS")
        // ext4, XFS, Btrfs, tmpfs, overlayfs
        for magic in [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994, 0x794C_7630] as [UInt32] {
            XCTAssertNil(SharedStorage.fileSystem(magic: magic) { XCTFail("asked"); return nil })
        }
        XCTAssertEqual(SharedStorage.fileSystem(magic: 0x6573_5546) { "fuse.glusterfs" }, "GlusterFS")
        XCTAssertNil(SharedStorage.fileSystem(magic: 0x6573_5546) { "fuseblk" })
        XCTAssertNil(SharedStorage.name(of: "/tmp"))
        XCTAssertNil(SharedStorage.name(of: "/tmp/absent/and/deeper"))
        // A name without a folder must not be looked up for ever.
        XCTAssertNil(SharedStorage.name(of: "absent"))
    }

    func testMountTypes() {
        let text = """
            22 27 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw
            41 27 0:38 / /gluster rw,relatime shared:1 master:2 - fuse.glusterfs host:/v rw,user_id=0
            42 27 0:39 / /plain rw - fuse.sshfs me@host:/ rw
            broken line
            """
        XCTAssertEqual(SharedStorage.mountType(text, major: 0, minor: 38), "fuse.glusterfs")
        XCTAssertEqual(SharedStorage.mountType(text, major: 0, minor: 39), "fuse.sshfs")
        XCTAssertNil(SharedStorage.mountType(text, major: 8, minor: 1))
    }

    /// A tree as /sys has it: an iSCSI disk, a local one, and LVM on top of each.
    func testBlockDevices() throws {
        let system = NSTemporaryDirectory() + "sys-\(UUID().uuidString)"
        defer { try? FileManager.default.removeItem(atPath: system) }
        let places = [(8, 0, "devices/platform/host3/session1/target3:0:0/block/sda"), (8, 16, "devices/pci0000:00/ata1/host0/block/sdb"),
                      (253, 0, "devices/virtual/block/dm-0"), (253, 1, "devices/virtual/block/dm-1"), (252, 0, "devices/rbd/0/block/rbd0")]
        try FileManager.default.createDirectory(atPath: "\(system)/dev/block", withIntermediateDirectories: true)
        for (major, minor, place) in places {
            try FileManager.default.createDirectory(atPath: "\(system)/\(place)/slaves", withIntermediateDirectories: true)
            try FileManager.default.createSymbolicLink(atPath: "\(system)/dev/block/\(major):\(minor)", withDestinationPath: "../../\(place)")
        }
        try FileManager.default.createSymbolicLink(atPath: "\(system)/\(places[2].2)/slaves/sda", withDestinationPath: "\(system)/\(places[0].2)")
        try FileManager.default.createSymbolicLink(atPath: "\(system)/\(places[3].2)/slaves/sdb", withDestinationPath: "\(system)/\(places[1].2)")
        func name(_ major: UInt, _ minor: UInt) -> String? { SharedStorage.blockDevice(dev_t(major << 8 | minor), system: system) }
        XCTAssertEqual(name(8, 0), "iSCSI")
        XCTAssertNil(name(8, 16))
        XCTAssertEqual(name(253, 0), "iSCSI")
        XCTAssertNil(name(253, 1))
        XCTAssertEqual(name(252, 0), "Ceph RBD")
        XCTAssertNil(name(9, 9))
    }
}
