import Foundation
import XCTest
@testable import ReplicaStore

/// What a power loss leaves: all that was flushed, and of everything since then anything at all: each write whole, not at all, or
/// some of its 512-byte sectors, each in any file independently of the others. The writes are a real run's, as strace saw them.
final class PowerLossTests: FolderTestCase {
    private enum Operation {
        case write(path: String, offset: Int, bytes: [UInt8])
        case zeroes(path: String, offset: Int, count: Int)
        /// Longer or shorter.
        case resize(path: String, size: Int)
        case grow(path: String, size: Int)
        case flush(path: String)
        case rename(from: String, to: String)
        case unlink(path: String)
        case create(path: String)
        /// Names of the folder become durable.
        case flushNames
    }

    /// A file as it is on the disk, and what has happened to it since.
    private final class File {
        var durable: [UInt8]
        var pending: [Operation] = []
        init(_ durable: [UInt8] = []) { self.durable = durable }

        static func apply(_ operation: Operation, to bytes: inout [UInt8], sectors: (Int) -> Bool = { _ in true }) {
            func reach(_ size: Int) { if size > bytes.count { bytes += [UInt8](repeating: 0, count: size - bytes.count) } }
            switch operation {
            case .write(_, let offset, let new):
                reach(offset + new.count)
                for index in new.indices where sectors((offset + index) / 512) { bytes[offset + index] = new[index] }
            case .zeroes(_, let offset, let count):
                let end = min(bytes.count, offset + count)
                if offset < end { bytes.replaceSubrange(offset..<end, with: [UInt8](repeating: 0, count: end - offset)) }
            case .resize(_, let size):
                if size < bytes.count { bytes.removeSubrange(size...) } else { reach(size) }
            case .grow(_, let size): reach(size)
            default: break
            }
        }

        func flush() {
            for operation in pending { Self.apply(operation, to: &durable) }
            pending = []
        }

        /// One of the contents that a power loss may leave.
        func remains(_ generator: inout SeededGenerator) -> [UInt8] {
            var bytes = durable
            for operation in pending {
                switch Int.random(in: 0..<4, using: &generator) {
                case 0: continue
                case 1:
                    let salt = generator.next()
                    Self.apply(operation, to: &bytes) { sector in
                        var decision = SeededGenerator(seed: salt ^ UInt64(sector))
                        return decision.next() & 1 == 0
                    }
                default: Self.apply(operation, to: &bytes)
                }
            }
            return bytes
        }
    }

    /// The folder: which name stands for which file, durable and now.
    private struct Disk {
        var now: [String: File] = [:]
        var durable: [String: File] = [:]
        var pendingNames: [Operation] = []

        mutating func perform(_ operation: Operation) {
            switch operation {
            case .write(let path, _, _), .zeroes(let path, _, _), .resize(let path, _), .grow(let path, _):
                now[path]?.pending.append(operation)
            case .flush(let path): now[path]?.flush()
            case .create(let path) where now[path] != nil: break
            case .create(let path):
                now[path] = File()
                pendingNames.append(operation)
            case .rename, .unlink:
                Self.rename(operation, &now)
                pendingNames.append(operation)
            case .flushNames:
                durable = now
                pendingNames = []
            }
        }

        private static func rename(_ operation: Operation, _ names: inout [String: File]) {
            if case .rename(let from, let to) = operation { names[to] = names.removeValue(forKey: from) }
            if case .unlink(let path) = operation { names[path] = nil }
        }

        /// File systems keep the order of names: some first part of what was not flushed is there.
        func remains(_ generator: inout SeededGenerator) -> [String: [UInt8]] {
            var names = durable
            let count = Int.random(in: 0...pendingNames.count, using: &generator)
            // A file that was made and renamed since is the one that `now`, or an earlier name, knows.
            for operation in pendingNames.prefix(count) {
                if case .create(let path) = operation, names[path] == nil { names[path] = now[path] ?? created[path] }
                Self.rename(operation, &names)
            }
            return names.mapValues { $0.remains(&generator) }
        }

        /// The last file that was made under a name.
        var created: [String: File] = [:]
        mutating func note(_ path: String) { created[path] = now[path] }
    }

    func testAnySubsetOfUnflushedWritesMayBeLost() throws {
        try skipUnless(program: "strace", package: "strace")
        let tool = try exerciser()
        let start = folder + "/start"
        try shell("\(tool) make \(start)")
        var disk = Disk()
        for name in ["disk0.raw", "disk3.raw", "memory"] { disk.now[name] = File(try content("\(start)/\(name)")) }
        disk.perform(.flushNames)
        let calls = "openat,pwrite64,pwritev,fallocate,ftruncate,fdatasync,fsync,rename,unlink"
        let run = try shell("strace -f -qq -y -v -xx -s 1000000 -e trace=\(calls) -o \(folder)/trace \(tool) run \(KillTests.seed) "
            + "\(KillTests.epochs) \(start)")
        guard run.status == 0 else { throw XCTSkip("Processes cannot be traced here: \(run.output)") }
        let operations = try Trace(folder: start).operations(String(contentsOfFile: folder + "/trace", encoding: .utf8))
        try checkTheModel(operations, disk, against: start)
        var generator = SeededGenerator(seed: 1)
        var folders: [String] = []
        for operation in operations {
            disk = performing(operation, disk)
            for _ in 0..<3 { folders.append(try materialize(disk, number: folders.count, &generator)) }
        }
        print("\(folders.count) power losses after \(operations.count) operations")
        XCTAssertGreaterThan(operations.count, 100)
        for batch in stride(from: 0, to: folders.count, by: 100) {
            let some = folders[batch..<min(folders.count, batch + 100)].joined(separator: " ")
            let check = try shell("exec \(tool) check power \(KillTests.seed) \(KillTests.epochs) \(some)")
            XCTAssertEqual(check.status, 0, check.output)
        }
    }

    private func performing(_ operation: Operation, _ disk: Disk) -> Disk {
        var disk = disk
        disk.perform(operation)
        if case .create(let path) = operation { disk.note(path) }
        return disk
    }

    /// Nothing lost: the model must give the files that the run left, or it proves nothing.
    private func checkTheModel(_ operations: [Operation], _ start: Disk, against folder: String) throws {
        var copy = Disk()
        copy.now = start.now.mapValues { File($0.durable) }
        for operation in operations { copy = performing(operation, copy) }
        for (name, file) in copy.now {
            file.flush()
            assertSame(try content("\(folder)/\(name)"), file.durable, name)
        }
        XCTAssertEqual(copy.now.keys.sorted(), ["disk0.raw", "disk3.raw", "memory", "store/journal", "store/state"] + chunkFiles(folder))
    }

    private func chunkFiles(_ folder: String) -> [String] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: folder + "/store")) ?? []
        return names.filter { $0.hasSuffix(".chunks") }.map { "store/" + $0 }.sorted()
    }

    private func materialize(_ disk: Disk, number: Int, _ generator: inout SeededGenerator) throws -> String {
        let place = "\(folder)/loss\(number)"
        try FileManager.default.createDirectory(atPath: place + "/store", withIntermediateDirectories: true)
        for (name, bytes) in disk.remains(&generator) { try put(bytes, "\(place)/\(name)") }
        // What the memory side knew is what others were told: it is the measure, not subject to loss.
        var memory = try XCTUnwrap(disk.now["memory"]).durable
        for operation in disk.now["memory"]?.pending ?? [] { File.apply(operation, to: &memory) }
        try put(memory, place + "/memory")
        return place
    }

    /// strace's lines as operations. `-xx` prints every string as hex, so that quotes and brackets within them do not matter.
    private struct Trace {
        let folder: String

        func operations(_ text: String) throws -> [Operation] {
            try text.split(separator: "\n").flatMap { try operation(String($0)) }
        }

        private func operation(_ line: String) throws -> [Operation] {
            guard let open = line.firstIndex(of: "("), let close = line.range(of: ") ", options: .backwards),
                  let equals = line.range(of: "= ", options: .backwards), !line[equals.upperBound...].hasPrefix("-1") else { return [] }
            let call = line[..<open].split(separator: " ").last.map(String.init) ?? ""
            let inside = line[line.index(after: open)..<close.lowerBound]
            let strings = inside.split(separator: "\"", omittingEmptySubsequences: false).enumerated().filter { $0.offset % 2 == 1 }
                .map { unhex($0.element) }
            let numbers = inside.split(separator: ",").compactMap { Int($0.trimmingCharacters(in: .whitespaces)) }
            let names = strings.map { String(decoding: $0, as: UTF8.self) }
            if call == "rename" { return [.rename(from: names[0], to: names[1])] }
            if call == "unlink" { return [.unlink(path: names[0])] }
            if call == "openat" {
                guard inside.contains("O_CREAT"), let name = names.last, name.hasPrefix("store/") else { return [] }
                return [.create(path: name)] + (inside.contains("O_TRUNC") ? [.resize(path: name, size: 0)] : [])
            }
            guard let path = path(inside) else { return [] }
            switch call {
            case "fsync" where path == "store", "fsync" where path == "": return path == "store" ? [.flushNames] : []
            case "fdatasync", "fsync": return [.flush(path: path)]
            case "ftruncate": return [.resize(path: path, size: numbers[numbers.count - 1])]
            case "pwrite64", "pwritev":
                return [.write(path: path, offset: numbers[numbers.count - 1], bytes: Array(strings.joined()))]
            case "fallocate":
                let offset = numbers[numbers.count - 2], count = numbers[numbers.count - 1]
                if inside.contains("PUNCH_HOLE") { return [.zeroes(path: path, offset: offset, count: count)] }
                return inside.contains("KEEP_SIZE") ? [] : [.grow(path: path, size: offset + count)]
            default: throw SystemErrorText("unexpected \(call)")
            }
        }

        /// Below the folder; "" for the folder itself. `3<\x2f\x74...>`
        private func path(_ inside: Substring) -> String? {
            guard let begin = inside.firstIndex(of: "<"), let end = inside.firstIndex(of: ">") else { return nil }
            let path = String(decoding: unhex(inside[inside.index(after: begin)..<end]), as: UTF8.self)
            guard path.hasPrefix(folder) else { return nil }
            return String(path.dropFirst(folder.count).drop { $0 == "/" })
        }

        private func unhex(_ text: Substring) -> [UInt8] {
            text.utf8.split(separator: UInt8(ascii: "\\")).compactMap { UInt8(String(decoding: $0.dropFirst(), as: UTF8.self), radix: 16) }
        }
    }
}
