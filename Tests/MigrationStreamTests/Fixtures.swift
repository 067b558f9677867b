import MigrationStream

/// A small machine's stream: two blocks, three pages, one of them zero, one of them in a section of its own.
enum Fixture {
    static let configuration = fields(
        ("0000 0002", "length of the machine's name"),
        ("7063", "pc"),
        ("05", "subsection"),
        ("12 636f6e66696775726174696f6e2f75756964", "configuration/uuid"),
        ("0000 0001", "version"),
        ("11111111 22223333 44445555 55555555", "UUID"))

    static let ramStart = fields(
        ("01", "section start"),
        ("0000 0002", "id"),
        ("03 72616d", "ram"),
        ("0000 0000", "instance"),
        ("0000 0004", "version"),
        ("0000 0000 0000 4004", "0x4000 bytes in all | block list"),
        ("06 70632e72616d", "pc.ram"),
        ("0000 0000 0000 3000", "length"),
        ("07 70632e62696f73", "pc.bios"),
        ("0000 0000 0000 1000", "length"),
        ("0000 0000 0000 0010", "EOS"),
        ("7e 0000 0002", "footer"))

    static let ramPart = fields(
        ("02", "section part"),
        ("0000 0002", "id"),
        ("0000 0000 0000 0008", "page at 0"),
        ("06 70632e72616d", "pc.ram")) + page(0xa1) + fields(
        ("0000 0000 0000 1022", "fill at 0x1000, same block"),
        ("00", "fill byte"),
        ("0000 0000 0000 0010", "EOS"),
        ("7e 0000 0002", "footer"))

    static let ramEnd = fields(
        ("03", "section end"),
        ("0000 0002", "id"),
        ("0000 0000 0000 2028", "page at 0x2000, same block as in the part before")) + page(0xa2) + fields(
        ("0000 0000 0000 0008", "page at 0"),
        ("07 70632e62696f73", "pc.bios")) + page(0xb0) + fields(
        ("0000 0000 0000 0010", "EOS"),
        ("7e 0000 0002", "footer"))

    static let firstPass = header + fields(("07", "configuration")) + configuration
        + fields(("08 0008 0000", "command: enable COLO, no data")) + ramStart + ramPart + ramEnd

    static let header = fields(("5145564d", "QEVM"), ("0000 0003", "version"))

    static let deviceState = fields(
        ("04", "section full"),
        ("0000 0001 05 74696d6572", "id 1, timer"),
        ("0000 0000 0000 0002", "instance, version"),
        ("0001 0203 0405 0607", "whatever a timer says"),
        ("7e 0000 0001", "footer"),
        ("00", "end of sections"))

    static let description = fields(
        ("06", "description"),
        ("0000 0021", "length"))
        + Array("{\"page_size\": 4096, \"devices\":[]}".utf8)

    /// As QEMU 10.0 has it.
    static let newerDescription = fields(
        ("06", "description"),
        ("0000 0036", "length"))
        + Array("{\"configuration\": {}, \"page_size\": 4096, \"devices\":[]}".utf8)

    static let tail = deviceState + description

    /// REQUEST; the answer to it is ours.
    static let request = fields(("0000 0001", "CHECKPOINT_REQUEST"))

    static let epochBody = fields(
        ("0000 0003", "VMSTATE_SEND"),
        ("03", "section end"),
        ("0000 0002", "id"),
        ("0000 0000 0000 1008", "page at 0x1000"),
        ("06 70632e72616d", "pc.ram")) + page(0xe1) + fields(
        ("0000 0000 0000 0022", "fill at 0, same block"),
        ("00", "fill byte"),
        ("0000 0000 0000 0010", "EOS"),
        ("7e 0000 0002", "footer"),
        ("00", "end of sections"),
        ("0000 0004", "VMSTATE_SIZE"),
        ("0000 0000 0000 0021", "33 bytes")) + deviceState

    /// RAM as it is after the first pass.
    static var firstRAM: SparseRAM {
        var ram = SparseRAM()
        ram.list = [RAMBlock(name: "pc.ram", length: 0x3000, index: 0), RAMBlock(name: "pc.bios", length: 0x1000, index: 1)]
        ram.pages = [
            .init(block: 0, offset: 0): page(0xa1), .init(block: 0, offset: 0x1000): page(0),
            .init(block: 0, offset: 0x2000): page(0xa2), .init(block: 1, offset: 0): page(0xb0),
        ]
        return ram
    }

    /// And after one epoch.
    static var secondRAM: SparseRAM {
        var ram = firstRAM
        ram.pages[.init(block: 0, offset: 0)] = page(0)
        ram.pages[.init(block: 0, offset: 0x1000)] = page(0xe1)
        return ram
    }

    static var streamHeader: StreamHeader {
        StreamHeader(configuration: configuration, machine: "pc", sectionID: 2, blocks: firstRAM.list)
    }
}
