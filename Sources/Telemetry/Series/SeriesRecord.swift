import CXXHash
import Foundation
import Platform

/// One segment of a series on disk, little-endian throughout:
///
///     segment := "SVKP" u16 version (1) u16 0 { record }
///     record  := u32 length of body | body | u64 XXH3 of body
///     body    := 1 | label, UTF-8                                        whose series it is, for people; the last one counts
///              | 2 | u16 count { u8 length, UTF-8 }                      columns, in addition to those before
///              | 3 | u64 ms since 1970 | u16 n | bits: present | bits: changed | f32 of each changed
///
/// The bits are those of the first n columns, lowest first. A value that did not change since the row before is not written again; one that is
/// absent there counts as changed. Single precision: seven digits are more than any KPI has. A reader ends at the first record that is not
/// whole: what is after it was cut off.
enum SeriesFormat {
    static let magic: [UInt8] = Array("SVKP".utf8)
    static let version: UInt16 = 1
    static let headerBytes = 8
    /// A row of `mostColumns` fits.
    static let longestBody = 64 << 10
    static let mostColumns = 8192
    static let longestName = 200

    enum Kind: UInt8 { case label = 1, columns, row }

    static var header: [UInt8] { magic + version.bytes + UInt16(0).bytes }

    static func record(_ body: [UInt8]) -> [UInt8] {
        UInt32(body.count).bytes + body + checksum(body[...]).bytes
    }

    static func checksum(_ body: ArraySlice<UInt8>) -> UInt64 {
        body.withUnsafeBytes { XXH3_64bits($0.baseAddress, $0.count) }
    }
}

/// A file that is no series, or one of another release.
public struct SeriesError: Error, Sendable, Equatable, CustomStringConvertible {
    public let description: String
}

extension FixedWidthInteger {
    /// Little-endian.
    var bytes: [UInt8] { withUnsafeBytes(of: littleEndian) { Array($0) } }
}

/// What a segment's rows so far leave for the next: both ends hold the same.
struct SeriesState: Equatable {
    var label = ""
    var columns: [String] = []
    var index: [String: Int] = [:]
    /// By column; nil: absent in the last row.
    var last: [Float?] = []

    mutating func add(_ name: String) {
        index[name] = columns.count
        columns.append(name)
        last.append(nil)
    }
}

/// Makes records.
struct SeriesEncoder {
    private(set) var state: SeriesState

    init(_ state: SeriesState = SeriesState()) { self.state = state }

    mutating func label(_ text: String) -> [UInt8] {
        let text = String(decoding: text.utf8.prefix(SeriesFormat.longestName), as: UTF8.self)
        guard text != state.label else { return [] }
        state.label = text
        return SeriesFormat.record([SeriesFormat.Kind.label.rawValue] + Array(text.utf8))
    }

    /// The sample's records: its new columns, if there are any, and its row.
    mutating func row(_ sample: Sample) -> [UInt8] {
        let news = sample.values.keys.filter { state.index[$0] == nil && $0.utf8.count <= SeriesFormat.longestName && !$0.isEmpty }.sorted()
            .prefix(max(0, SeriesFormat.mostColumns - state.columns.count))
        // A body of columns fits as well: 250 names of 200 bytes.
        return stride(from: 0, to: news.count, by: 250).flatMap { columns(Array(news[$0..<min($0 + 250, news.count)])) } + values(sample)
    }

    private mutating func columns(_ names: [String]) -> [UInt8] {
        var body = [SeriesFormat.Kind.columns.rawValue] + UInt16(names.count).bytes
        for name in names {
            state.add(name)
            body.append(UInt8(name.utf8.count))
            body += name.utf8
        }
        return SeriesFormat.record(body)
    }

    private mutating func values(_ sample: Sample) -> [UInt8] {
        let count = state.columns.count
        var present = [UInt8](repeating: 0, count: (count + 7) / 8), changed = present
        var numbers: [UInt8] = []
        numbers.reserveCapacity(sample.values.count * 4)
        for column in 0..<count {
            let value = sample.values[state.columns[column]].map(Float.init)
            if let value {
                present[column / 8] |= 1 << UInt8(column % 8)
                if value != state.last[column] {
                    changed[column / 8] |= 1 << UInt8(column % 8)
                    numbers += value.bitPattern.bytes
                }
            }
            state.last[column] = value
        }
        return SeriesFormat.record([SeriesFormat.Kind.row.rawValue] + sample.time.bytes + UInt16(count).bytes + present + changed + numbers)
    }
}

/// Reads a segment.
struct SeriesDecoder {
    private(set) var state = SeriesState()
    /// Bytes that are whole records.
    private(set) var validBytes = 0
    private let bytes: [UInt8]

    /// - Throws: `SeriesError` when this is no segment of this version. A file shorter than its header is an empty one.
    init(_ bytes: [UInt8], file: String) throws(SeriesError) {
        self.bytes = bytes
        guard bytes.count >= SeriesFormat.headerBytes else { return }
        guard Array(bytes[..<4]) == SeriesFormat.magic else {
            throw SeriesError(description: "\(file) is no series of KPIs: it begins with \(bytes[..<4].map { String($0, radix: 16) }.joined(separator: " "))")
        }
        let version = UInt16(bytes[4]) | UInt16(bytes[5]) << 8
        guard version == SeriesFormat.version else {
            throw SeriesError(description: "\(file) has version \(version) of the series format; this release reads version \(SeriesFormat.version). Move it away")
        }
        validBytes = SeriesFormat.headerBytes
    }

    /// The next row: its time, and a value or nil for each of `state.columns`; nil at the end, or where the file stops making sense.
    mutating func next() -> UInt64? {
        while let body = nextBody() {
            guard let kind = SeriesFormat.Kind(rawValue: body.first ?? 0) else { return nil }
            let content = body.dropFirst()
            var time: UInt64?
            switch kind {
            case .label: state.label = String(decoding: content, as: UTF8.self)
            case .columns: guard addColumns(content) else { return nil }
            case .row:
                time = addRow(content)
                guard time != nil else { return nil }
            }
            validBytes += body.count + 12
            if let time { return time }
        }
        return nil
    }

    private func nextBody() -> ArraySlice<UInt8>? {
        guard validBytes >= SeriesFormat.headerBytes, let length = integer(UInt32.self, at: validBytes), length > 0, length <= SeriesFormat.longestBody else { return nil }
        let begin = validBytes + 4, end = begin + Int(length)
        guard let expected = integer(UInt64.self, at: end) else { return nil }
        let body = bytes[begin..<end]
        return SeriesFormat.checksum(body) == expected ? body : nil
    }

    private func integer<T: FixedWidthInteger>(_ type: T.Type, at offset: Int) -> T? {
        guard offset >= 0, offset + MemoryLayout<T>.size <= bytes.count else { return nil }
        return bytes.withUnsafeBytes { T(littleEndian: $0.loadUnaligned(fromByteOffset: offset, as: T.self)) }
    }

    private mutating func addColumns(_ content: ArraySlice<UInt8>) -> Bool {
        guard content.count >= 2 else { return false }
        var rest = content.dropFirst(2)
        let count = Int(content[content.startIndex]) | Int(content[content.startIndex + 1]) << 8
        guard state.columns.count + count <= SeriesFormat.mostColumns else { return false }
        for _ in 0..<count {
            guard let length = rest.popFirst(), rest.count >= Int(length) else { return false }
            state.add(String(decoding: rest.prefix(Int(length)), as: UTF8.self))
            rest = rest.dropFirst(Int(length))
        }
        return rest.isEmpty
    }

    private mutating func addRow(_ content: ArraySlice<UInt8>) -> UInt64? {
        let start = content.startIndex
        guard content.count >= 10, let time = integer(UInt64.self, at: start), let count = integer(UInt16.self, at: start + 8).map(Int.init),
              count == state.columns.count else { return nil }
        let mapBytes = (count + 7) / 8
        let present = start + 10, changed = present + mapBytes
        var at = changed + mapBytes
        guard content.endIndex >= at else { return nil }
        for column in 0..<count {
            let bit = UInt8(1) << UInt8(column % 8)
            guard bytes[present + column / 8] & bit != 0 else {
                state.last[column] = nil
                continue
            }
            guard bytes[changed + column / 8] & bit != 0 else {
                // Unchanged from nothing.
                guard state.last[column] != nil else { return nil }
                continue
            }
            guard at + 4 <= content.endIndex, let number = integer(UInt32.self, at: at) else { return nil }
            state.last[column] = Float(bitPattern: number)
            at += 4
        }
        return at == content.endIndex ? time : nil
    }
}
