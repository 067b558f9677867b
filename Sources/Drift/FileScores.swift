import Foundation

/// Scores whole files with the shipped settings, row by row and never ahead: what `analyze` prints.
public enum FileScores {
    public struct Row: Equatable, Sendable {
        /// As it stands in the file.
        public var timestamp: String
        public var score: Double
    }

    /// A file of pairs: `timestamp`, then `p_NAME` and `s_NAME` of each KPI, in any order. `step` in seconds.
    public static func pairs(path: String, step: Double) throws(SampleFileError) -> [Row] {
        let file = try SampleFile(path: path)
        let (primary, shadow) = try columns(file)
        try check(step: step, file)
        var analyzer = DriftAnalyzer(step: step), rows: [Row] = [], last = -Double.infinity
        for (index, row) in file.rows.enumerated() {
            guard file.times[index] > last else {
                throw SampleFileError(path: path, line: index + 2, message: "Time \(file.timestamps[index]) does not come after the row before: sort the rows")
            }
            last = file.times[index]
            let verdict = analyzer.add(time: last, primary: primary.mapValues { row[$0] }, shadow: shadow.mapValues { row[$0] })
            rows.append(Row(timestamp: String(file.timestamps[index]), score: verdict.score))
        }
        return rows
    }

    /// A file with one series: `timestamp,value`. Rows are taken in the order they stand in; real series jump back at a change of clocks.
    public static func series(path: String) throws(SampleFileError) -> [Row] {
        let file = try SampleFile(path: path)
        guard let column = file.columns.firstIndex(of: "value") else {
            throw SampleFileError(path: path, line: 1, message: "No column 'value': a series has 'timestamp,value'")
        }
        var analyzer = SeriesAnalyzer()
        return file.rows.indices.map { index in
            let score = analyzer.add(time: file.times[index], value: file.rows[index][column] ?? .nan)
            return Row(timestamp: String(file.timestamps[index]), score: score)
        }
    }

    /// Milliseconds taken for seconds, or another step than the file's, would turn every row into a gap or a repetition: nothing would be judged, and nothing said.
    private static func check(step: Double, _ file: SampleFile) throws(SampleFileError) {
        let distances = zip(file.times.dropFirst(), file.times).map { $0 - $1 }.filter { $0 > 0 }.sorted()
        guard distances.count >= 10 else { return }
        let usual = distances[distances.count / 2]
        guard usual > 5 * step || usual < step / 5 else { return }
        throw SampleFileError(path: file.path, line: nil, message: "Its rows are \(usual) s apart, and --step says \(step): times are in seconds")
    }

    private static func columns(_ file: SampleFile) throws(SampleFileError) -> (primary: [String: Int], shadow: [String: Int]) {
        var primary: [String: Int] = [:], shadow: [String: Int] = [:]
        for (index, name) in file.columns.enumerated() {
            if name.hasPrefix("p_") { primary[String(name.dropFirst(2))] = index }
            else if name.hasPrefix("s_") { shadow[String(name.dropFirst(2))] = index }
            else { throw SampleFileError(path: file.path, line: 1, message: "Column '\(name)' belongs to no side: names begin with p_ or s_") }
        }
        for name in primary.keys.sorted() where shadow[name] == nil {
            throw SampleFileError(path: file.path, line: 1, message: "Column 'p_\(name)' has no counterpart 's_\(name)'")
        }
        for name in shadow.keys.sorted() where primary[name] == nil {
            throw SampleFileError(path: file.path, line: 1, message: "Column 's_\(name)' has no counterpart 'p_\(name)'")
        }
        guard !primary.isEmpty else { throw SampleFileError(path: file.path, line: 1, message: "No KPI: columns p_NAME and s_NAME are expected") }
        return (primary, shadow)
    }
}
