import Foundation

/// A file that cannot be used.
public struct SampleFileError: Error, Equatable, CustomStringConvertible {
    public var path: String
    /// From 1; nil: the file as a whole.
    public var line: Int?
    public var message: String

    public var description: String { path + (line.map { ":\($0)" } ?? "") + ": " + message }
}

/// A CSV file of samples: a header, then rows that begin with a time in seconds. Fields hold numbers; an empty one, `nan` and the like are lost samples.
struct SampleFile {
    /// A file beyond this is no series of samples but a mistake.
    static let mostBytes = 256 << 20

    let path: String
    /// The columns after the time.
    let columns: [String]
    /// As written.
    private(set) var timestamps: [Substring] = []
    private(set) var times: [Double] = []
    /// Row by row.
    private(set) var rows: [[Double?]] = []

    init(path: String) throws(SampleFileError) {
        self.path = path
        let text = try Self.read(path)
        var lines = text.split(omittingEmptySubsequences: false, whereSeparator: \.isNewline)
        while lines.last?.isEmpty == true { lines.removeLast() }
        guard let header = lines.first else { throw SampleFileError(path: path, line: nil, message: "Empty file: a header with 'timestamp' is expected") }
        let names = header.split(separator: ",", omittingEmptySubsequences: false).map { $0.trimmingCharacters(in: .whitespaces) }
        guard names.first == "timestamp" else {
            throw SampleFileError(path: path, line: 1, message: "The first column is '\(names.first ?? "")': 'timestamp' is expected")
        }
        columns = Array(names.dropFirst())
        if let twice = Dictionary(grouping: columns, by: \.self).first(where: { $0.value.count > 1 || $0.key.isEmpty }) {
            throw SampleFileError(path: path, line: 1, message: twice.key.isEmpty ? "A column has no name" : "Column '\(twice.key)' stands there twice")
        }
        for (index, line) in lines.enumerated().dropFirst() { try add(line, number: index + 1) }
    }

    private static func read(_ path: String) throws(SampleFileError) -> String {
        do {
            let data = try Data(contentsOf: URL(fileURLWithPath: path), options: .mappedIfSafe)
            guard data.count <= mostBytes else {
                throw SampleFileError(path: path, line: nil, message: "\(data.count) bytes are more than the \(mostBytes) that are read: split it")
            }
            guard let text = String(validating: data, as: UTF8.self) else {
                throw SampleFileError(path: path, line: nil, message: "Not a text file: its bytes are not UTF-8")
            }
            return text
        } catch let error as SampleFileError {
            throw error
        } catch {
            throw SampleFileError(path: path, line: nil, message: "Cannot read it: \(error.localizedDescription)")
        }
    }

    private mutating func add(_ line: Substring, number: Int) throws(SampleFileError) {
        let fields = line.split(separator: ",", omittingEmptySubsequences: false)
        guard fields.count == columns.count + 1 else {
            throw SampleFileError(path: path, line: number, message: "\(fields.count) fields, but the header has \(columns.count + 1)")
        }
        guard let time = Double(fields[0]), time.isFinite else {
            throw SampleFileError(path: path, line: number, message: "'\(fields[0])' is no time: seconds since 1970 are expected")
        }
        var row: [Double?] = []
        row.reserveCapacity(columns.count)
        for (field, column) in zip(fields.dropFirst(), columns) {
            if field.isEmpty || field.allSatisfy({ $0 == " " }) {
                row.append(nil)
            } else if let value = Double(field) ?? Double(field.trimmingCharacters(in: .whitespaces)) {
                row.append(value.isFinite ? value : nil)
            } else {
                throw SampleFileError(path: path, line: number, message: "'\(field)' in column '\(column)' is no number")
            }
        }
        timestamps.append(fields[0])
        times.append(time)
        rows.append(row)
    }
}
