import XCTest
@testable import Orchestration

/// What QEMU's human monitor and the kernel print, as 7.2 and 10.0 do.
final class MonitorTextTests: XCTestCase {
    func testBlocks() {
        let old = """
                          Block Name    PSize              Offset               Used              Total
                           ram-node0    4 KiB  0x0000000000000000 0x0000000002000000 0x0000000002000000
                /rom@etc/acpi/tables    4 KiB  0x0000000004080000 0x0000000000020000 0x0000000000200000\r
            """
        let blocks = [MonitorText.Block(name: "ram-node0", usedBytes: 32 << 20, totalBytes: 32 << 20), .init(name: "/rom@etc/acpi/tables", usedBytes: 128 << 10, totalBytes: 2 << 20)]
        XCTAssertEqual(MonitorText.blocks(old), blocks)
        let new = """
                          Block Name    PSize              Offset               Used              Total                HVA  RO
                           ram-node0    2 MiB  0x0000000000000000 0x0000000002000000 0x0000000002000000 0x00007fd5d5e00000  rw
                /rom@etc/acpi/tables    4 KiB  0x0000000004080000 0x0000000000020000 0x0000000000200000 0x00007fd5d5c00000  ro
            """
        XCTAssertEqual(MonitorText.blocks(new), blocks)
        XCTAssertEqual(MonitorText.blocks("unknown command: 'info ramblock'"), [])
        XCTAssertEqual(MonitorText.blocks(""), [])
    }

    func testRanges() {
        let text = """
            FlatView #0
             AS "virtio-blk-pci", root: bus master container
             Root memory region: system
              0000000000000000-0000000000ffffff (prio 0, ram): elsewhere KVM

            FlatView #1
             AS "cpu-memory-0", root: system
             AS "memory", root: system
             Root memory region: system
              0000000000000000-00000000000bffff (prio 0, ram): ram-node0 KVM
              00000000000c0000-00000000000dffff (prio 1, rom): pc.rom KVM
              0000000000100000-0000000001ffffff (prio 0, ram): ram-node0 @0000000000100000 KVM
              0000000002000000-0000000003ffffff (prio 0, ram): ram-node1
              00000000febf8000-00000000febf8fff (prio 0, i/o): virtio-pci-common-virtio-blk
              0000000100000000-0000000107ffffff (prio 0, ram): memdimm0 KVM

            FlatView #2
             AS "I/O", root: io
              0000000000000000-0000000000000007 (prio 0, ram): no-memory
            """
        XCTAssertEqual(MonitorText.ranges(text), [
            .init(block: "ram-node0", address: 0, offset: 0), .init(block: "ram-node0", address: 1 << 20, offset: 1 << 20), .init(block: "ram-node1", address: 32 << 20, offset: 0),
            .init(block: "memdimm0", address: 4 << 30, offset: 0),
        ])
    }

    func testHostAddress() {
        XCTAssertEqual(MonitorText.hostAddress("Host virtual address for 0x2000000 (ram-node1) is 0x7ff023ffe000\r\n", of: "ram-node1"), 0x7ff0_23ff_e000)
        XCTAssertNil(MonitorText.hostAddress("Host virtual address for 0x2000000 (ram-node1) is 0x7ff023ffe000", of: "ram-node0"), "Another block answers")
        XCTAssertNil(MonitorText.hostAddress("No memory is mapped at address 0x2000000", of: "ram-node1"))
    }

    func testMappings() {
        let text = """
            7ff023ffe000-7ff025ffe000 rw-s 00000000 00:01 18715                      /memfd:memory-backend-memfd (deleted)
            7ff025fff000-7ff027fff000 rw-s 00002000 00:01 18714                      /memfd:memory-backend-memfd (deleted)
            7ff028000000-7ff028021000 rw-p 00000000 00:00 0
            rubbish
            """
        let mappings = ProcessMapping.all(text)
        XCTAssertEqual(mappings.map(\.inode), [18715, 18714, 0])
        XCTAssertEqual(mappings[1], ProcessMapping(addresses: 0x7ff0_25ff_f000..<0x7ff0_27ff_f000, offset: 8192, inode: 18714, path: "/memfd:memory-backend-memfd (deleted)"))
    }
}
