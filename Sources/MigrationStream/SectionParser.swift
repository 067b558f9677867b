import Glibc

// QEMU's migration stream, big-endian. QEMU `migration/savevm.c` (sections), `migration/ram.c` (RAM data).
//
//  stream   = "QEVM" u32 3, section*
//
//  section  = 07 configuration                          savevm.c, vmstate_configuration
//           | 08 u16 command, u16 length, bytes         qemu_savevm_command_send
//           | 01 u32 id, string name, u32 instance, u32 version, data, footer      start
//           | 02 u32 id, data, footer                   part: while the guest runs
//           | 03 u32 id, data, footer                   end: the guest is stopped
//           | 04 ...                                    full: device state, its length is nobody's business
//           | 00                                        end of the sections
//           | 06 u32 length, JSON                       description of the device state
//  footer   = 7e u32 id
//  string   = u8 length, bytes
//
//  configuration = u32 length, machine type, subsection*
//  subsection    = 05 string "configuration/...", u32 version, fields
//                  target-page-bits: u32;  capabilities: u32 count, string*;  uuid: 16 bytes
//
//  data     = word*, the last one EOS                   ram.c, ram_load_precopy
//  word     = u64: bits 63..12 offset in the block, bits 11..0 flags
//
//             flags         then
//             04            block list: the "offset" is the sum of lengths; (string name, u64 length)* up to that sum
//             02 [+20]      [string block unless 20] u8 fill byte
//             08 [+20]      [string block unless 20] 4096 bytes
//             10            EOS: the data ends here
//
//  With bit 20 the page is of the same block as the one before it, also across sections and epochs.

/// Section types. QEMU `migration/savevm.h`, `QEMU_VM_*`.
enum SectionType {
    static let endOfSections: UInt8 = 0x00
    static let start: UInt8 = 0x01
    static let part: UInt8 = 0x02
    static let end: UInt8 = 0x03
    static let full: UInt8 = 0x04
    static let subsection: UInt8 = 0x05
    static let description: UInt8 = 0x06
    static let configuration: UInt8 = 0x07
    static let command: UInt8 = 0x08
    static let footer: UInt8 = 0x7e
}

let streamMagic: UInt32 = 0x5145_564d
let streamVersion: UInt32 = 3

/// Reads sections. Knows the grammar, not the order; `COLODialogue` knows that.
@usableFromInline
final class SectionParser {
    @usableFromInline let reader: StreamReader
    /// Set by `ram` start.
    @usableFromInline var header: StreamHeader?
    @usableFromInline var configuration: [UInt8]?
    @usableFromInline var machine = ""
    @usableFromInline var pages: UInt64 = 0
    @usableFromInline var fills: UInt64 = 0

    /// Block names and lengths as the stream gives them; looked up on a change of block only.
    @usableFromInline var names: [[UInt8]] = []
    @usableFromInline var lengths: [UInt64] = []
    /// The block of the last page, -1 before the first.
    @usableFromInline var block = -1
    @usableFromInline var blockLength: UInt64 = 0

    /// More blocks than any machine has; QEMU has about 10, plus one for each DIMM and option ROM.
    private static let maximumBlocks = 4096

    init(reader: StreamReader) {
        self.reader = reader
    }

    // MARK: Before the pages

    @usableFromInline
    func fileHeader() throws(StreamError) {
        reader.section = "header"
        let magic = try reader.takeU32()
        guard magic == streamMagic else { throw reader.fail(.badMagic(magic), back: 4) }
        let version = try reader.takeU32()
        guard version == streamVersion else { throw reader.fail(.unsupportedVersion(version), back: 4) }
    }

    /// After its type byte. Keeps the bytes as they are: the shadow's QEMU gets them back.
    @usableFromInline
    func configurationSection() throws(StreamError) {
        reader.section = "configuration"
        var raw: [UInt8] = []
        machine = text(try copy(UInt64(try copyU32(&raw)), "Machine name", limit: 256, &raw))
        while try peek() == SectionType.subsection {
            raw.append(try reader.takeU8())
            let name = text(try copy(UInt64(try copyU8(&raw)), "Name", limit: 255, &raw))
            _ = try copyU32(&raw)
            switch name {
            case "configuration/target-page-bits": _ = try copyU32(&raw)
            case "configuration/uuid": _ = try copy(16, "UUID", limit: 16, &raw)
            case "configuration/capabilities": try capabilities(&raw)
            default: throw reader.fail(.unknownConfiguration(name: name))
            }
        }
        configuration = raw
    }

    private func capabilities(_ raw: inout [UInt8]) throws(StreamError) {
        let count = try copyU32(&raw)
        guard count <= 64 else {
            throw reader.fail(.tooLong(what: "Capability list", length: UInt64(count), limit: 64))
        }
        for _ in 0..<count {
            let name = text(try copy(UInt64(try copyU8(&raw)), "Name", limit: 255, &raw))
            // These three change what RAM data looks like.
            if ["x-ignore-shared", "mapped-ram", "multifd"].contains(name) {
                throw reader.fail(.unsupportedCapability(name: name))
            }
        }
    }

    /// After its type byte. Commands that only announce something are skipped.
    @usableFromInline
    func command() throws(StreamError) {
        reader.section = "command"
        let command = try reader.takeU16()
        let length = try reader.takeU16()
        switch command {
        case 3, 4, 5, 6, 7, 9, 10:
            // Postcopy, and "packaged", which wraps a stream in the stream.
            throw reader.fail(.unsupportedCommand(command), back: 4)
        default:
            // Return path, ping, enable COLO, and what later versions add.
            _ = try reader.takeBytes(Int(length))
        }
    }

    // MARK: RAM sections

    /// A section of type start, part or end, after its type byte.
    @inlinable
    func ramSection<S: PageSink>(type: UInt8, into sink: inout S) throws(StreamError) {
        let id = try type == 0x01 ? startOfRAM() : continuationOfRAM(type: type)
        try ramData(into: &sink, mayList: type == 0x01)
        if type == 0x01, names.isEmpty { throw reader.fail(.misplacedBlockList) }
        try footer(id)
    }

    @usableFromInline
    func startOfRAM() throws(StreamError) -> UInt32 {
        reader.section = "section start"
        let id = try reader.takeU32()
        let name = text(Array(try reader.takeBytes(Int(try reader.takeU8()))))
        guard name == "ram" else { throw reader.fail(.unsupportedSection(name: name)) }
        guard header == nil else { throw reader.fail(.misplacedBlockList) }
        reader.section = "ram start"
        header = StreamHeader(configuration: configuration, machine: machine, sectionID: id, sectionName: name,
                              instance: try reader.takeU32(), version: try reader.takeU32(), blocks: [])
        return id
    }

    @usableFromInline
    func continuationOfRAM(type: UInt8) throws(StreamError) -> UInt32 {
        reader.section = type == SectionType.part ? "ram part" : "ram end"
        let id = try reader.takeU32()
        guard id == header?.sectionID else { throw reader.fail(.unknownSectionID(id), back: 4) }
        return id
    }

    @usableFromInline
    func footer(_ id: UInt32) throws(StreamError) {
        let mark = try reader.takeU8()
        guard mark == SectionType.footer else { throw reader.fail(.badFooter, back: 1) }
        guard try reader.takeU32() == id else { throw reader.fail(.badFooter, back: 5) }
    }

    /// The hot loop: one turn a page, no allocation, no copy.
    @inlinable
    func ramData<S: PageSink>(into sink: inout S, mayList: Bool) throws(StreamError) {
        while true {
            try reader.require(8, &sink)
            let word = UInt64(bigEndian: reader.cursor.loadUnaligned(as: UInt64.self))
            reader.cursor += 8
            let flags = word & 0xfff
            let offset = word & ~0xfff
            switch flags {
            case RAMFlags.page | RAMFlags.sameBlock, RAMFlags.page:
                if flags & RAMFlags.sameBlock == 0 { try blockName(&sink) }
                try check(offset)
                try reader.require(4096, &sink)
                let bytes = reader.cursor
                reader.cursor += 4096
                pages &+= 1
                sink.page(block: block, offset: offset, bytes: UnsafeRawPointer(bytes))
            case RAMFlags.fill | RAMFlags.sameBlock, RAMFlags.fill:
                if flags & RAMFlags.sameBlock == 0 { try blockName(&sink) }
                try check(offset)
                try reader.require(1, &sink)
                let byte = reader.cursor.load(as: UInt8.self)
                reader.cursor += 1
                fills &+= 1
                sink.fill(block: block, offset: offset, byte: byte)
            case RAMFlags.end:
                return
            case RAMFlags.blockList:
                guard mayList, names.isEmpty else { throw reader.fail(.misplacedBlockList, back: 8) }
                try sink.blocks(try blockList(total: offset))
            default:
                throw reader.fail(.unknownRAMFlags(flags), back: 8)
            }
        }
    }

    /// Every page, whatever block it names: the sink may index memory with it.
    @inlinable
    func check(_ offset: UInt64) throws(StreamError) {
        // Lengths are multiples of 4096, so is the offset; -1 as block comes with length 0.
        guard offset < blockLength else { throw badOffset(offset) }
    }

    @usableFromInline
    @inline(never)
    func badOffset(_ offset: UInt64) -> StreamError {
        guard block >= 0, block < names.count else { return reader.fail(.noBlock) }
        return reader.fail(.pageOutOfBlock(name: text(names[block]), offset: offset))
    }

    @inlinable
    func blockName<S: PageSink>(_ sink: inout S) throws(StreamError) {
        try reader.require(1, &sink)
        let length = Int(reader.cursor.load(as: UInt8.self))
        try reader.require(1 + length, &sink)
        let bytes = UnsafeRawBufferPointer(start: reader.cursor + 1, count: length)
        reader.cursor += 1 + length
        try selectBlock(bytes)
    }

    @usableFromInline
    @inline(never)
    func selectBlock(_ name: UnsafeRawBufferPointer) throws(StreamError) {
        if block >= 0, names[block].elementsEqual(name) { return }
        guard let found = names.firstIndex(where: { $0.elementsEqual(name) }) else {
            throw reader.fail(.unknownBlock(name: text(Array(name))), back: name.count)
        }
        block = found
        blockLength = lengths[found]
    }

    @usableFromInline
    func blockList(total: UInt64) throws(StreamError) -> [RAMBlock] {
        var blocks: [RAMBlock] = []
        var rest = total
        while rest > 0 {
            let name = Array(try reader.takeBytes(Int(try reader.takeU8())))
            let length = try reader.takeU64()
            guard length > 0, length <= rest, length % UInt64(streamPageBytes) == 0 else {
                throw reader.fail(.badBlockList(reason: "\"\(text(name))\" has \(length) bytes"), back: 8)
            }
            guard blocks.count < Self.maximumBlocks, !names.contains(name) else {
                throw reader.fail(.badBlockList(reason: "\"\(text(name))\" is there twice, or too many blocks"), back: 8)
            }
            names.append(name)
            lengths.append(length)
            blocks.append(RAMBlock(name: text(name), length: length, index: blocks.count))
            rest -= length
        }
        guard !blocks.isEmpty else { throw reader.fail(.badBlockList(reason: "it is empty"), back: 8) }
        header?.blocks = blocks
        return blocks
    }

    // MARK: Helpers

    private func text(_ bytes: [UInt8]) -> String { String(decoding: bytes, as: UTF8.self) }

    private func peek() throws(StreamError) -> UInt8 {
        try reader.require(1)
        return reader.cursor.load(as: UInt8.self)
    }

    private func copy(_ count: UInt64, _ what: String, limit: UInt64,
                      _ raw: inout [UInt8]) throws(StreamError) -> [UInt8] {
        guard count <= limit else { throw reader.fail(.tooLong(what: what, length: count, limit: limit)) }
        let bytes = Array(try reader.takeBytes(Int(count)))
        raw += bytes
        return bytes
    }

    private func copyU8(_ raw: inout [UInt8]) throws(StreamError) -> UInt8 {
        let value = try reader.takeU8()
        raw.append(value)
        return value
    }

    private func copyU32(_ raw: inout [UInt8]) throws(StreamError) -> UInt32 {
        let value = try reader.takeU32()
        withUnsafeBytes(of: value.bigEndian) { raw.append(contentsOf: $0) }
        return value
    }
}
