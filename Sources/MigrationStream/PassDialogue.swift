import Glibc

/// What a pass brought besides the pages.
public struct PassState: Sendable, Equatable {
    /// All devices, up to and with the closing byte 0; without the description that QEMU may send behind it.
    public let device: [UInt8]
    /// Pages sent with their bytes, and pages sent as one fill byte.
    public let pages: UInt64
    public let fills: UInt64
}

/// Reads one pass: a whole migration stream that QEMU ends by closing it. Nothing is ever answered.
///
///     background snapshot   configuration, commands, ram start, ram parts                device state, description, end
///     live migration        configuration, commands, ram start, ram parts, ram end       the same
///
/// A background snapshot's pages are those of the moment when its device state was taken, each sent once; a live migration's are
/// final only when the guest has been stopped, which shows in nothing here. QEMU `migration/migration.c`, `bg_migration_thread`
/// and `migration_thread`.
///
/// **Whoever reads a background snapshot reads it to its end** (`discardRest` when it is of no use): a QEMU of 7.2 whose stream
/// breaks never takes the write protection off the guest's memory, and the guest stands still for good.
///
/// Not thread-safe: one thread at a time.
public final class PassDialogue {
    public let reader: StreamReader
    @usableFromInline let parser: SectionParser

    public init(reader: StreamReader) {
        self.reader = reader
        parser = SectionParser(reader: reader)
    }

    /// What the stream said about itself; nil before `ram` start.
    public var header: StreamHeader? { parser.header }

    /// Reads to the end of the stream, all pages into `sink`.
    @inlinable
    public func read<S: PageSink>(into sink: inout S) throws(StreamError) -> PassState {
        try parser.fileHeader()
        while true {
            reader.section = "section type"
            let type = try reader.takeU8()
            switch type {
            case 0x07 where parser.header == nil && parser.configuration == nil: try parser.configurationSection()
            case 0x08: try parser.command()
            case 0x01, 0x02, 0x03: try parser.ramSection(type: type, into: &sink)
            case 0x04 where parser.header != nil: return try deviceState()
            default: throw reader.fail(.unknownSection(type), back: 1)
            }
        }
    }

    /// Everything from the first device's type byte, which was taken, to the end of the stream.
    @usableFromInline
    func deviceState() throws(StreamError) -> PassState {
        reader.section = "device state"
        var bytes: [UInt8] = [SectionType.full]
        while try reader.drain(into: &bytes, limit: Int(COLODialogue.deviceStateLimit)) { try reader.wait(for: Int16(POLLIN)) }
        return PassState(device: try Self.withoutDescription(bytes, reader), pages: parser.pages, fills: parser.fills)
    }

    private static func withoutDescription(_ bytes: [UInt8], _ reader: StreamReader) throws(StreamError) -> [UInt8] {
        if let end = descriptionStart(bytes) { return Array(bytes[..<end]) }
        // A machine type may send no description (`suppress-vmdesc`). Anything else was cut off.
        guard bytes.count > 1, bytes.last == SectionType.endOfSections else { throw reader.fail(.endOfStream) }
        return bytes
    }

    /// Where the description (06 u32 length, JSON) begins that reaches exactly to the end; it follows the closing byte.
    private static func descriptionStart(_ bytes: [UInt8]) -> Int? {
        bytes.withUnsafeBytes { all in
            guard let base = all.baseAddress else { return nil }
            var at = 1
            while at + 5 < all.count, let hit = memchr(base + at, Int32(SectionType.description), all.count - at - 5) {
                at = UnsafeRawPointer(hit) - base
                let length = Int(UInt32(bigEndian: (base + at + 1).loadUnaligned(as: UInt32.self)))
                if all[at - 1] == SectionType.endOfSections, all[at + 5] == UInt8(ascii: "{"), at + 5 + length == all.count { return at }
                at += 1
            }
            return nil
        }
    }

    /// Reads what is left and throws it away, however long that takes. The reader's wake-up and deadline do not count.
    public static func discardRest(of fd: Int32) {
        let scratch = UnsafeMutableRawBufferPointer.allocate(byteCount: 256 << 10, alignment: 16)
        defer { scratch.deallocate() }
        while true {
            let got = Glibc.read(fd, scratch.baseAddress, scratch.count)
            if got > 0 { continue }
            if got == 0 { return }
            switch errno {
            case EINTR: continue
            case EAGAIN:
                var entry = pollfd(fd: fd, events: Int16(POLLIN), revents: 0)
                _ = poll(&entry, 1, -1)
            default: return
            }
        }
    }
}
