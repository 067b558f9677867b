import Foundation
import Glibc
import Platform

/// One subject's samples on disk: a ring of segment files, each an append-only run of checksummed records. The oldest segment goes when the
/// whole is past its ceiling. A torn tail, left by a crash or a full disk, is cut off when the series is opened again. Rows are not
/// synced one by one: a loss of power costs what the kernel had not written yet, some 30 s.
///
/// Written by one thread; anybody may read meanwhile.
public final class Series: @unchecked Sendable {
    static let suffix = ".kpi"
    static let segments = 8
    /// A day at 5 s of a pair with a hundred KPIs of which half change.
    public static let defaultCeiling = 8 << 20

    /// The segment that is written to.
    private final class Segment {
        let file: Descriptor
        let path: String
        var bytes: Int

        init(_ file: consuming Descriptor, path: String, bytes: Int) {
            self.file = file
            self.path = path
            self.bytes = bytes
        }
    }

    let folder: String
    private let segmentBytes: Int
    private var encoder = SeriesEncoder()
    private var current: Segment?
    private var hasLooked = false
    private var lastTime: UInt64 = 0

    /// `ceiling`: bytes of all segments together.
    public init(folder: String, ceiling: Int = Series.defaultCeiling) {
        self.folder = folder
        segmentBytes = max(4096, ceiling / Self.segments)
    }

    // MARK: Writing

    /// Adds a sample. One that is not later than the last (the clock was set back) begins a segment of its own, so that each is in order.
    public func append(_ sample: Sample, label: String) throws {
        if !hasLooked { try reopen() }
        if let segment = current, segment.bytes >= segmentBytes || sample.time <= lastTime { current = nil }
        let segment = try current ?? begin(sample.time)
        let before = encoder
        do {
            let records = encoder.label(label) + encoder.row(sample)
            try write(records, to: segment)
            lastTime = sample.time
        } catch {
            // A part of it may be there; the next row takes its place.
            encoder = before
            throw error
        }
    }

    private func write(_ records: [UInt8], to segment: Segment) throws {
        let n = records.withUnsafeBytes { buffer in retryingInterrupts { pwrite(segment.file.raw, buffer.baseAddress, buffer.count, off_t(segment.bytes)) } }
        guard n == records.count else { throw SystemError("pwrite", segment.path, code: n < 0 ? errno : ENOSPC) }
        segment.bytes += n
    }

    /// Takes up the newest segment, up to where it makes sense.
    private func reopen() throws {
        hasLooked = true
        guard let name = Self.names(in: folder).last else { return }
        let path = "\(folder)/\(name)"
        do {
            var decoder = try SeriesDecoder(Self.contents(path), file: path)
            while let time = decoder.next() { lastTime = time }
            guard decoder.validBytes >= SeriesFormat.headerBytes else { return }
            let file = try Descriptor(checking: open(path, O_RDWR | O_CLOEXEC), "open", path)
            guard ftruncate(file.raw, off_t(decoder.validBytes)) == 0 else { throw SystemError("ftruncate", path) }
            current = Segment(file, path: path, bytes: decoder.validBytes)
            encoder = SeriesEncoder(decoder.state)
        } catch let error as SeriesError {
            // It stays for whoever knows what it is; the series goes on in a segment of its own.
            Log.warning("Telemetry: \(error)")
        }
    }

    /// A new segment whose name says when it begins, and that sorts behind all others even when the clock was set back.
    private func begin(_ time: UInt64) throws -> Segment {
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        let names = Self.names(in: folder)
        let number = (names.last.flatMap { Self.number($0) } ?? 0) + 1
        let path = "\(folder)/\(Self.name(number, time))"
        let file = try Descriptor(checking: open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600), "open", path)
        let segment = Segment(file, path: path, bytes: 0)
        try write(SeriesFormat.header, to: segment)
        for name in names.dropLast(Self.segments - 1) { unlink("\(folder)/\(name)") }
        encoder = SeriesEncoder()
        current = segment
        return segment
    }

    // MARK: Reading

    public struct Rows: Sendable {
        public var label = ""
        public var columns: [String] = []
        /// Nil in a row: absent then. A row may be shorter than `columns`: what is missing was not known yet.
        public var rows: [(time: UInt64, values: [Float?])] = []
        /// There is more after the last row.
        public var isCut = false
    }

    /// Rows from `since` on (milliseconds since 1970), the oldest first, at most so many values in all.
    public func rows(since: UInt64, mostValues: Int = .max) throws -> Rows {
        var result = Rows()
        var index: [String: Int] = [:]
        var left = mostValues
        let names = Self.names(in: folder)
        for (place, name) in names.enumerated() {
            // The next one begins before: nothing in this one is late enough, unless the clock was set back.
            if place + 1 < names.count, let next = Self.time(names[place + 1]), let own = Self.time(name), next >= own, next < since { continue }
            // It may have gone since the folder was read.
            guard let bytes = try? Self.contents("\(folder)/\(name)"), var decoder = try? SeriesDecoder(bytes, file: name) else { continue }
            var map: [Int] = []
            while let time = decoder.next() {
                guard time >= since else { continue }
                guard left > 0 else {
                    result.isCut = true
                    return result
                }
                for column in decoder.state.columns[map.count...] {
                    if index[column] == nil {
                        index[column] = result.columns.count
                        result.columns.append(column)
                    }
                    map.append(index[column] ?? 0)
                }
                var row = [Float?](repeating: nil, count: result.columns.count)
                for (place, value) in zip(map, decoder.state.last) { row[place] = value }
                result.rows.append((time, row))
                left -= row.count
            }
            if !decoder.state.label.isEmpty { result.label = decoder.state.label }
        }
        return result
    }

    // MARK: Files

    private static func name(_ number: UInt32, _ time: UInt64) -> String {
        func hex(_ value: some BinaryInteger, _ width: Int) -> String {
            let digits = String(value, radix: 16)
            return String(repeating: "0", count: max(0, width - digits.count)) + digits
        }
        return "\(hex(number, 8))-\(hex(time, 12))\(suffix)"
    }

    private static func number(_ name: String) -> UInt32? { UInt32(name.prefix(8), radix: 16) }
    private static func time(_ name: String) -> UInt64? { UInt64(name.dropFirst(9).dropLast(suffix.count), radix: 16) }

    /// Segments, the oldest first.
    static func names(in folder: String) -> [String] {
        ((try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []).filter { $0.hasSuffix(suffix) && number($0) != nil && time($0) != nil }.sorted()
    }

    /// No segment of ours is longer than its share and one record.
    private static func contents(_ path: String) throws -> [UInt8] {
        let file = try Descriptor(checking: open(path, O_RDONLY | O_CLOEXEC), "open", path)
        var info = stat()
        guard fstat(file.raw, &info) == 0 else { throw SystemError("fstat", path) }
        guard info.st_size <= 64 << 20 else { throw SeriesError(description: "\(path) has \(info.st_size) bytes, which no segment has. Move it away") }
        var bytes = [UInt8](repeating: 0, count: Int(info.st_size))
        let count = bytes.withUnsafeMutableBytes { buffer in retryingInterrupts { pread(file.raw, buffer.baseAddress, buffer.count, 0) } }
        guard count >= 0 else { throw SystemError("pread", path) }
        return Array(bytes[..<count])
    }
}
