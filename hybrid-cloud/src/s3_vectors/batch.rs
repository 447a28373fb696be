//! How records are split over calls.

use hybrid_core::VectorRecord;

/// Records that one call writes.
const MAX_RECORDS: usize = 500;
/// Bytes of one call's body, well under the service's 20 MiB.
const MAX_BYTES: usize = 16 * 1024 * 1024;
/// A component as JSON text takes at most this: the SDK writes it in double precision, so sign, 17 digits, point, exponent and comma.
const COMPONENT_BYTES: usize = 25;

/// Splits records into batches that fit a call each.
pub(super) fn split(records: Vec<VectorRecord>) -> Vec<Vec<VectorRecord>> {
    let mut batches: Vec<Vec<VectorRecord>> = Vec::new();
    let mut size = 0;
    for record in records {
        let next = body_bytes(&record);
        match batches.last_mut().filter(|batch| batch.len() < MAX_RECORDS && size + next <= MAX_BYTES) {
            Some(batch) => {
                batch.push(record);
                size += next;
            }
            None => {
                batches.push(vec![record]);
                size = next;
            }
        }
    }
    batches
}

fn body_bytes(record: &VectorRecord) -> usize {
    let VectorRecord { key, vector, metadata } = record;
    // Twice, since every character may have to be escaped.
    let text = |bytes: usize| 2 * bytes + 16;
    let metadata = metadata.iter().map(|(field, value)| text(field.len()) + text(value.to_string().len()));
    64 + text(key.as_str().len()) + vector.len() * COMPONENT_BYTES + metadata.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(count: usize, dimension: usize) -> Vec<usize> {
        let records = (0..count).map(|i| VectorRecord::new(i.to_string(), vec![0.5; dimension]).unwrap()).collect();
        split(records).iter().map(Vec::len).collect()
    }

    #[test]
    fn a_batch_fits_a_call_by_count_and_by_bytes() {
        assert_eq!(sizes(0, 8), [0; 0]);
        assert_eq!(sizes(1_234, 8), [500, 500, 234]);
        let wide = sizes(500, 4096);
        assert!(wide.len() > 1 && wide.iter().sum::<usize>() == 500, "{wide:?}");
        // As long as a component in single precision gets.
        let longest = [f32::MIN, -1.175_494_4e-38, -0.123_456_79].map(|x| format!("{:?},", f64::from(x)).len());
        assert!(longest.iter().all(|length| *length <= COMPONENT_BYTES), "{longest:?}");
        assert!(wide[0] * 4096 * COMPONENT_BYTES <= MAX_BYTES, "{wide:?}");
    }
}
